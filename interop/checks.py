"""What the Python suites share: named checks, and the line that says how many passed."""
import sys
import time
import traceback
import uuid

passed, failed = 0, 0
BOOTSTRAP = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9092"


def fresh(prefix):
    """A name that no other check uses."""
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


def check(function):
    """Runs a check at once and counts it."""
    global passed, failed
    try:
        function()
        passed += 1
    except Exception:
        failed += 1
        print(f"FAILED {function.__name__}", flush=True)
        traceback.print_exc()
    return function


def eventually(holds, seconds=10):
    """Waits for what was done to be seen: brokers of Apache Kafka hear of it after whoever did it."""
    end_at = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end_at, "it was never seen"
        time.sleep(0.05)


def end():
    print(f"{passed} passed, {failed} failed", flush=True)
    sys.exit(1 if failed else 0)
