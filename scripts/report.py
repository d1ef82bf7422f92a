"""
The results of a working directory: the table, and a page with figures, in Markdown and in HTML.

    python scripts/report.py --path=runs

Figures need the package's [figures] extra; --nofigures prints the table alone.
"""

from pathlib import Path

from absl import flags

from cnn_gp import cli, shared_flags
from cnn_gp.errors import UserError
from cnn_gp.evaluation.errors_table import errors_as_text
from cnn_gp.evaluation.result_files import read_all

FLAGS = flags.FLAGS
shared_flags.define_path()
shared_flags.define_csv_dir()
flags.DEFINE_bool("figures", True, "Write the page and its figures.")
flags.DEFINE_string(
    "compare_with",
    None,
    "Another folder of results in the working directory (another --csv_dir): compare each run with itself there.",
)


def main() -> None:
    """Print the table, write the page."""
    folder = Path(FLAGS.path) / FLAGS.csv_dir
    compare_with = None if FLAGS.compare_with is None else Path(FLAGS.path) / FLAGS.compare_with
    if compare_with is not None and not FLAGS.figures:
        raise UserError("--compare_with is part of the page, which --nofigures leaves out: give one of them.")
    if compare_with is not None and compare_with.resolve() == folder.resolve():
        raise UserError(f"--compare_with is {FLAGS.compare_with!r}, as --csv_dir; expected another folder of results.")
    results = read_all(folder)
    if not results:
        raise UserError(f"There are no results in {folder}; compute some with classify_gp.py, or check --path.")
    print(errors_as_text(results))
    if FLAGS.figures:
        # Here, for it needs Matplotlib, which the table does not.
        from cnn_gp.report.report import write_report

        markdown, html = write_report(Path(FLAGS.path), folder, results, compare_with)
        print(f"The page with figures: {markdown}, and as one file for a browser: {html}")


if __name__ == "__main__":
    cli.run(main)
