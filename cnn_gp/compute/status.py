"""Which parts of a run are done, missing, damaged and being computed, as text."""

from collections import Counter
from collections.abc import Sequence

from ..progress import duration
from ..store.run_directory import RunDirectory
from ..store.tiling import Part
from .claims import claimed


def status(run: RunDirectory, verify: bool = False) -> str:
    """
    The state of a run, and how long is left at the rate so far.

    :param verify: read every byte of the parts, images, labels and view.
    """
    description = run.description()
    parts = description.tiling.parts()
    missing, reasons = run.parts.missing(verify)
    so_far = [run.kept_rows.so_far(part) for part in missing]
    kept, seconds = sum(entries for entries, _ in so_far), sum(seconds for _, seconds in so_far)
    total, left = description.tiling.n_entries, sum(part.n_entries for part in missing) - kept
    lines = [
        f"{run.name} in {run.workdir}: {len(parts) - len(missing)} of {len(parts)} parts done, "
        f"{1 - left / total:.1%} of {total:,} kernel entries"
        + (", every byte of parts, images, labels and view checked" if verify else "")
    ]
    lines += [f"  {name}: {reason}; it will be computed again" for name, reason in reasons.items()]
    if verify:
        defects = run.defects_beside_parts()
        if missing:
            # It is written last.
            defects.pop(run.view_path.name, None)
        lines += [f"  {name}: {reason}; it will be written again" for name, reason in defects.items()]
    names = {part.name for part in missing}
    lines += [f"  {name}: at work, {who}" for name, who in claimed(run.claims_folder).items() if name in names]
    done = [part for part in parts if part.name not in names]
    engines = parts_by_engine(run, done)
    if engines:
        lines.append(f"  computed by {in_words(engines)}")
    if len(engines) > 1:
        lines.append(f"  {ENGINES_DIFFER}")
    if missing:
        listed = ", ".join(part.name for part in missing[:8])
        lines.append("  missing: " + listed + (f" and {len(missing) - 8} more" if len(missing) > 8 else ""))
        seconds += sum(record.get("seconds", 0.0) for record in run.parts.provenance(done))
        if seconds and left < total:
            rate = (total - left) / seconds
            lines.append(f"  about {duration(left / rate)} of one worker's time left")
    elif not run.view_path.exists():
        lines.append("  the view isn't written: start save_kernels.py once more with the same flags")
    return "\n".join(lines)


#: For runs in float32; in float64 there is one engine. tests/engines/test_tensorflow.py holds it.
ENGINES_DIFFER = (
    "entries of two engines differ by up to 1e-6 (relative), in networks with the erf by up to 1e-5; more between "
    "nearly identical images where the network has the erf or the kernel is a neural tangent kernel"
)


def parts_by_engine(run: RunDirectory, done: Sequence[Part]) -> dict[str, int]:
    """How many of the parts that are done each engine has computed."""
    return dict(sorted(Counter(str(record.get("engine", "unknown")) for record in run.parts.provenance(done)).items()))


def in_words(engines: dict[str, int]) -> str:
    """ "the fused engine (5 parts) and the tensorflow engine (1 part)" """
    return " and ".join(f"the {name} engine ({n} part{'' if n == 1 else 's'})" for name, n in engines.items())
