// Sends the newest wish only, and lets no slow answer overwrite a newer one.

const REST_MILLISECONDS = 25;
const PATIENCE_MILLISECONDS = 2000;

export class Latest {
  // send(signal) => a promise of the answer to what is wished now; show(answer) and fail(error) take what comes back.
  constructor(send, show, fail) {
    Object.assign(this, { send, show, fail, timer: 0, wanted: false, flying: null, number: 0, shown: 0 });
  }

  // Something was moved: ask, but not for every pixel that it moves.
  want() {
    this.wanted = true;
    if (!this.timer) this.timer = setTimeout(() => { this.timer = 0; this.go(); }, REST_MILLISECONDS);
  }

  // One wish is on its way at a time; one that takes too long is given up for the newer.
  go() {
    if (!this.wanted) return;
    if (this.flying) {
      if (performance.now() - this.flying.since < PATIENCE_MILLISECONDS) return;
      this.flying.abort.abort();
    }
    this.wanted = false;
    this.fly({ number: ++this.number, since: performance.now(), abort: new AbortController() });
  }

  async fly(flight) {
    this.flying = flight;
    try {
      const answer = await this.send(flight.abort.signal);
      if (flight.number > this.shown) {
        this.shown = flight.number;
        this.show(answer);
      }
    } catch (error) {
      if (error.name !== "AbortError" && flight.number === this.number) this.fail(error);
    } finally {
      if (this.flying === flight) {
        this.flying = null;
        this.go();
      }
    }
  }
}
