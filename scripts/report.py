"""
The table of all results in a working directory.

    python scripts/report.py --path=runs
"""

from pathlib import Path

from absl import flags

from cnn_gp import cli
from cnn_gp.errors import UserError
from cnn_gp.results import read_all, table

FLAGS = flags.FLAGS
flags.DEFINE_string("path", None, "The working directory.", required=True)
flags.DEFINE_string("csv_dir", "results", "Folder of the results, in the working directory.")


def main() -> None:
    """Print the table."""
    folder = Path(FLAGS.path) / FLAGS.csv_dir
    results = read_all(folder)
    if not results:
        raise UserError(f"There are no results in {folder}; compute some with classify_gp.py, or check --path.")
    print(table(results))


if __name__ == "__main__":
    cli.run(main)
