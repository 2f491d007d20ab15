"""What an unpacker makes of an image: a tree, or why there is none; comparing two of them."""

import base64
import collections
import difflib
import importlib.machinery
import importlib.util
import json
import os
import pathlib
import stat
import zlib

from shell import Failure

SCRIPTS = pathlib.Path(__file__).resolve().parent.parent
KNOWN = SCRIPTS / "lib/known-awkward.txt"
TABLE = SCRIPTS.parent / "index/AWKWARD.md"
RECORD = SCRIPTS.parent / "index/tests/awkward.jsonl"

CLOCK = "clock"  # instead of a time that was taken from the clock
GHOST = "ghost"  # the kind of a name that is listed and not found
ANSWER = "answer"  # the field that says whether there is a tree at all
TREE, REFUSED = "tree", "refused"
DEFAULTS = {"uid": "0", "gid": "0", "mtime": "1600000000.000000000"}  # left out of the record

# Whether the trees are equal, differ as is known, or otherwise; differences are (path, field, containerd, peel)
Result = collections.namedtuple("Result", "case verdict reference answer differences reasons")


def _load_compare_trees():
    loader = importlib.machinery.SourceFileLoader("compare_trees", str(SCRIPTS / "compare-trees"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("compare_trees", loader))
    loader.exec_module(module)
    return module


compare_trees = _load_compare_trees()


class Tree(compare_trees.Tree):
    """A tree of which overlayfs may list names that it does not find."""

    def __init__(self, root):
        self.ghosts = []
        super().__init__(root)

    def _walk(self):
        self._add(b".", os.stat(self.root))
        waiting = [b""]
        while waiting:
            folder = waiting.pop()
            for name in os.listdir(os.path.join(self.root, folder)):
                path = os.path.join(folder, name)
                try:
                    status = os.lstat(self.full(path))
                except FileNotFoundError:
                    self.ghosts.append(path)
                    continue
                self._add(path, status)
                if stat.S_ISDIR(status.st_mode):
                    waiting.append(path)


def listing(root, *, clock=None):
    """Every path below a folder to its fields, as scripts/compare-trees has them.

    Times from `clock` on (nanoseconds) become CLOCK. Overlayfs says 1 for the link count of
    merged folders; with `clock`, the count is what an unpacked folder has.
    """
    tree = Tree(root)
    folders = collections.Counter(os.path.dirname(path) or b"." for path, status in tree.stats.items()
                                  if path != b"." and stat.S_ISDIR(status.st_mode))
    shown = {}
    for path in sorted(tree.stats):
        fields, status = tree.describe(path), tree.stats[path]
        if clock and clock <= status.st_mtime_ns < clock + 3600 * 10**9:
            fields["mtime"] = CLOCK
        if clock and fields["kind"] == "directory":
            fields["nlink"] = str(2 + folders[path])
        if "links" in fields:
            fields["links"] = fields["links"].replace(" ", ",")
        if fields["kind"] == "file":
            fields["sha256"] = tree.digest(path)
        shown[compare_trees.escape(path)] = fields
    shown.update({compare_trees.escape(path): {"kind": GHOST} for path in tree.ghosts})
    return shown


def judge(case, reference, answer, known):
    """Compares containerd's answer with peel's; `known` are the differences that may be."""
    found = list(differences(reference, answer))
    keys = [tuple(difference) for difference in found]
    reasons = [known.get(key, "") for key in keys]
    if not found and not known:
        verdict = "equal"
    else:
        verdict = "known" if set(keys) == set(known) else "DIFFERENT"
    missing = [(*key, "DID NOT OCCUR") for key in known if key not in keys]
    return Result(case, verdict, reference, answer, found, reasons + missing)


def differences(reference, answer):
    """Yields (path, field, containerd, peel); values without spaces."""
    if isinstance(reference, str) or isinstance(answer, str):
        if isinstance(reference, str) != isinstance(answer, str):
            yield ".", ANSWER, *(REFUSED if isinstance(side, str) else TREE for side in (reference, answer))
        return
    for path in sorted(reference.keys() | answer.keys()):
        left, right = reference.get(path), answer.get(path)
        if left is None or right is None:
            yield path, "entry", *(side["kind"] if side else compare_trees.ABSENT for side in (left, right))
            continue
        for name in sorted(left | right):
            values = left.get(name, compare_trees.ABSENT), right.get(name, compare_trees.ABSENT)
            if values[0] != values[1] and values[0] != CLOCK:
                yield path, name, *map(compare_trees.shorten, values)


def read_known(names):
    """The file of known differences: by case, by difference, the reason."""
    known = collections.defaultdict(dict)
    for number, line in enumerate(KNOWN.read_text(encoding="ascii").splitlines(), 1):
        words = line.split(None, 5)
        if not words or line.startswith("#"):
            continue
        if len(words) != 6 or words[0] not in names:
            raise Failure(f"{KNOWN}:{number}: expected CASE PATH FIELD CONTAINERD PEEL REASON, found: {line}")
        known[words[0]][tuple(words[1:5])] = words[5]
    return known


def show(result):
    """Prints a line for a case, and one for each difference."""
    print(f"{result.verdict:9} {result.case.name}: {brief(result.reference)}")
    if result.verdict == "equal" and not isinstance(result.answer, str):
        return
    if isinstance(result.answer, str):
        print(f"          peel: {brief(result.answer)}")
    for difference, reason in zip(result.differences, result.reasons):
        print(f"          {' '.join(difference)}  ({reason or 'NOT KNOWN'})")
    for missing in result.reasons[len(result.differences):]:
        print(f"          {' '.join(missing)}")


def brief(answer):
    """An answer in a few words."""
    if isinstance(answer, str):
        return f"refused: {answer}"
    names = [_brief_entry(path, fields) for path, fields in answer.items() if path != "."]
    if not names:
        return "an empty tree"
    text = " ".join(names)
    return f"`{text}`" if len(text) <= 160 else f"`{text[:120]}`... ({len(names)} entries)"


def _brief_entry(path, fields):
    path = path if len(path) <= 40 else f"{path[:30]}..."
    ending = {"directory": "/", "symlink": f"->{fields.get('target', '')[:20]}", "fifo": "|"}.get(fields["kind"], "")
    return path + ending + (f"[{fields['rdev']}]" if "rdev" in fields else "")


def store(results, version, write):
    """Writes the table and the record, or checks that they are as they would be written."""
    for path, text in ((TABLE, table(results, version)), (RECORD, record(results))):
        if write:
            path.write_text(text, encoding="ascii")
            continue
        old = path.read_text(encoding="ascii") if path.exists() else ""
        changed = [line for line in difflib.unified_diff(old.splitlines(), text.splitlines(), lineterm="", n=0)]
        if changed:
            shown = "\n".join(line[:2000] for line in changed[:12])
            raise Failure(f"{path}: not up to date\n{shown}\nhint: scripts/awkward-layers --write")


def record(results):
    """JSON Lines: a case, its layers, containerd's answer, and peel's where that is another."""
    lines = []
    for result in results:
        layers = [base64.b64encode(zlib.compress(layer.blob, 9)).decode() for layer in result.case.layers]
        line = {"case": result.case.name, "layers": layers, "containerd": _compact(result.reference)}
        if result.differences:
            line["peel"] = _compact(result.answer)
        lines.append(json.dumps(line, separators=(",", ":"), sort_keys=True))
    return "\n".join(lines) + "\n"


def _compact(answer):
    """Without fields that say what goes without saying."""
    if isinstance(answer, str):
        return answer
    compact = {}
    for path, fields in answer.items():
        fields = {name: value for name, value in fields.items() if DEFAULTS.get(name) != value}
        if fields.get("links") == path:
            del fields["links"]
        compact[path] = fields
    return compact


def table(results, version):
    """index/AWKWARD.md."""
    counts = collections.Counter(result.verdict for result in results)
    lines = [
        "# Awkward layers: containerd's answers and peel's",
        "",
        f"Written by `scripts/awkward-layers --write`: {len(results)} cases of `scripts/lib/awkward*.py`, containerd",
        f"{version} with its overlayfs snapshotter on ext4. {counts['equal']} are equal in names, kinds, modes, owners, sizes,",
        f"times, links, attributes and contents, or refused by both; {counts['known']} differ as said here (containerd's value",
        "before peel's). `tests/awkward.jsonl` holds layers and answers for `tests/awkward.rs`.",
    ]
    group = None
    for result in results:
        if result.case.group != group:
            group = result.case.group
            lines += ["", f"## {group[0].upper()}{group[1:]}", "", "| case | containerd | peel |", "| --- | --- | --- |"]
        cells = [f"**{result.case.name}**: {result.case.about}", brief(result.reference), _verdict(result)]
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _verdict(result):
    if not result.differences:
        return "equal" if not isinstance(result.answer, str) else f"equal: {brief(result.answer)}"
    reasons = collections.defaultdict(list)
    for (path, name, left, right), reason in zip(result.differences, result.reasons):
        place = f"{path} {name}: " if name != ANSWER else ""
        reasons[reason].append(f"{place}{left}, {right}")
    text = "; ".join(f"{', '.join(where)} ({reason})" for reason, where in reasons.items())
    return f"{brief(result.answer)}; {text}" if isinstance(result.answer, str) else text
