"""Send the buffered records of a run to the MLflow store: `python -m tracking.deliver FILE`."""

import argparse
from pathlib import Path

from filelock import FileLock

from tracking.buffer import read, send
from tracking.store import FAULTS, cause, client


def main() -> None:
    """Send the buffered records of a run to the MLflow store, and remove the file."""
    parser = argparse.ArgumentParser(prog="python -m tracking.deliver", description=main.__doc__)
    parser.add_argument("file", type=Path, help="mlruns/EXPERIMENT/RUN/undelivered.jsonl")
    file = parser.parse_args().file.resolve()
    if file.name != "undelivered.jsonl" or not file.is_file():
        parser.error(f"{file} is not an existing undelivered.jsonl. Was it sent already?")
    try:
        with FileLock(file.with_name(".writer"), timeout=0):
            left = records = read(file)
            while left:
                left = left[send(client(), file.parent.name, left) :]
            file.unlink()
    except FAULTS as error:
        parser.error(f"{cause(error)}. Records that were not sent stay in {file}.")
    print(f"sent {len(records)} records of run {file.parent.name}")


if __name__ == "__main__":
    main()
