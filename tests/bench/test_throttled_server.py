"""The simulated object storage delays requests and shares its bandwidth."""

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import urlopen

from featgan.bench.throttled_server import serve_throttled


def read_url(url: str) -> bytes:
    with urlopen(url, timeout=60) as response:
        content: bytes = response.read()
    return content


def test_requests_wait_for_the_latency_and_share_the_bandwidth(tmp_path: Path) -> None:
    content = bytes(range(256)) * 1200
    (tmp_path / "file").write_bytes(content)
    requests: Counter[str] = Counter()
    with serve_throttled(tmp_path, 0.1, 1e6, requests) as url:
        start = time.monotonic()
        with ThreadPoolExecutor(3) as pool:
            assert list(pool.map(read_url, [f"{url}/file"] * 3)) == [content] * 3
        seconds = time.monotonic() - start
    assert requests == {"/file": 3}
    # The latency, and the time to send all bytes except for the last pieces, which do not wait for each other.
    assert seconds > 0.1 + (3 * len(content) - 4 * 65536) / 1e6
