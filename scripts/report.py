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


def main() -> None:
    """Print the table, write the page."""
    folder = Path(FLAGS.path) / FLAGS.csv_dir
    results = read_all(folder)
    if not results:
        raise UserError(f"There are no results in {folder}; compute some with classify_gp.py, or check --path.")
    print(errors_as_text(results))
    if FLAGS.figures:
        # Here, for it needs Matplotlib, which the table does not.
        from cnn_gp.report.report import write_report

        markdown, html = write_report(Path(FLAGS.path), folder, results)
        print(f"The page with figures: {markdown}, and as one file for a browser: {html}")


if __name__ == "__main__":
    cli.run(main)
