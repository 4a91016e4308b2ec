// Sends only the newest request, and never shows a response that is older than the one on display.

const DEBOUNCE_MILLISECONDS = 25;
const REQUEST_TIMEOUT_MILLISECONDS = 2000;

export class LatestRequest {
  // send(signal) returns a promise of the response to the current request; onResult and onError receive the outcome.
  constructor(send, onResult, onError) {
    Object.assign(this, { send, onResult, onError, timer: 0, isPending: false, inFlight: null, newestNumber: 0, newestShown: 0 });
  }

  // Requests the current state soon; changes within the debounce time share one request.
  schedule() {
    this.isPending = true;
    if (!this.timer) this.timer = setTimeout(() => { this.timer = 0; this.sendPending(); }, DEBOUNCE_MILLISECONDS);
  }

  // Only one request is in flight; one that takes longer than the timeout is aborted for the newer one.
  sendPending() {
    if (!this.isPending) return;
    if (this.inFlight) {
      if (performance.now() - this.inFlight.since < REQUEST_TIMEOUT_MILLISECONDS) return;
      this.inFlight.controller.abort();
    }
    this.isPending = false;
    this.sendRequest({ sequenceNumber: ++this.newestNumber, since: performance.now(), controller: new AbortController() });
  }

  async sendRequest(attempt) {
    this.inFlight = attempt;
    try {
      const result = await this.send(attempt.controller.signal);
      if (attempt.sequenceNumber > this.newestShown) {
        this.newestShown = attempt.sequenceNumber;
        this.onResult(result);
      }
    } catch (error) {
      if (error.name !== "AbortError" && attempt.sequenceNumber === this.newestNumber) this.onError(error);
    } finally {
      if (this.inFlight === attempt) {
        this.inFlight = null;
        this.sendPending();
      }
    }
  }
}
