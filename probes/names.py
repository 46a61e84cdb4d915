"""The encoders of a report by their names in its tables; those of several folds go by one name and their fold.

`runs/ssl/vits16-fold{fold}/encoder.safetensors` stands for every fold's file that is there, a list for its members.
"""

import re
from collections.abc import Mapping
from glob import escape
from pathlib import Path

from papsmear.errors import UsageError

FOLD = "{fold}"

References = list[str] | dict[str, str | list[str]] | str | None
Folds = dict[str, tuple[str, ...]]


def name_encoders(encoders: list[str] | Mapping[str, str | list[str]] | str | None) -> dict[str, str | list[str]]:
    """Gives each encoder a short name for tables: its own, the file's, or for `encoder.safetensors` its folder's."""
    if isinstance(encoders, Mapping):
        named = dict(encoders)
    else:
        listed = [encoders] if isinstance(encoders, str) else encoders or []
        names = [_short_name(encoder) for encoder in listed]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UsageError(
                f"--encoders: two of them would be called {twice[0]!r}; name them: --encoders '{{first: …, second: …}}'"
            )
        named = dict(zip(names, listed, strict=True))
    if not named:
        raise UsageError("--encoders: none given; name at least one, such as --encoders random:resnet50")
    return named


def with_folds(named: Mapping[str, str | list[str]]) -> tuple[dict[str, str], Folds]:
    """Every single encoder, and for each name that stands for several folds' encoders the names of these."""
    single: dict[str, str] = {}
    folds: Folds = {}
    for name, told in named.items():
        if isinstance(told, list):
            members = {f"{name} #{number}": reference for number, reference in enumerate(told, 1)}
        elif FOLD in told:
            members = {f"{name} fold {fold}": file for fold, file in _files_of_folds(name, told).items()}
        else:
            single[name] = told
            continue
        if not members:
            raise UsageError(f"--encoders.{name}: an empty list; give one encoder for each fold")
        folds[name] = tuple(members)
        single |= members
    return single, folds


def _files_of_folds(name: str, pattern: str) -> dict[str, str]:
    """Fold → file, for every file that a pattern with `{fold}` matches."""
    head, *tail = map(re.escape, str(Path(pattern)).split(FOLD))
    told = re.compile(head + r"(?P<fold>\w+)" + "(?P=fold)".join(tail))
    path = Path(pattern)
    below = escape(str(path.relative_to(path.anchor))).replace(FOLD, "*")
    matches = [told.fullmatch(str(file)) for file in Path(path.anchor).glob(below)]
    found = {match["fold"]: match[0] for match in matches if match}
    if not found:
        raise UsageError(f"--encoders.{name}: no file is called {pattern}, whatever the fold")
    return dict(sorted(found.items(), key=lambda item: (len(item[0]), item[0])))


def _short_name(encoder: str) -> str:
    path = Path(encoder)
    if path.suffix != ".safetensors":
        return encoder
    name = path.absolute().parent.name if path.stem == "encoder" else path.stem
    return re.sub(r"[-_. ]?(fold)?[-_]?\{fold\}", "", name) or "folds"
