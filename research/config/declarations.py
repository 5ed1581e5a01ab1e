"""Declarations: what the options of groups need of each other, as words in their YAML files.

A data set, a compression and a model list in ``provides`` what they provide; a model and a task
list in ``needs`` what another group must provide; a model lists in ``accepts`` what it can also
use. ``split`` removes these lists from a configuration before it is built or stored, and
``mismatches`` compares them. A data set also declares ``default_batch_size``, the default of the
setting ``batch_size`` with this data set.

========================  ====================================================================
``provides`` of a         words
========================  ====================================================================
data set                  targets: ``classes``, ``boxes``, ``pairs``; inputs: ``images`` (RGB),
                          ``channels`` (RGB and more), ``photos`` (two of a pair), ``features``
                          (of photos); ``bitstream``: coefficients can be read from its files
compression               ``coefficients`` instead of pixels; ``late_chroma``: these enter the
                          model at two places
model                     ``logits``, ``detections``, ``class_labels`` of these if it predicts
                          them, ``preferences``
========================  ====================================================================

A user's own option files may use other words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from omegaconf import OmegaConf

from research.config.options import WORDS, options, read_option, without_declarations
from research.utils.errors import UserError

PROVIDERS: Final = ("dataset", "compression", "model")
"""Groups whose options have ``provides``."""
CONSUMERS: Final = ("task", "model")
"""Groups whose options have ``needs``."""
GROUPS: Final = ("dataset", "compression", "model", "task")
COEFFICIENTS: Final = "coefficients"
LATE_CHROMA: Final = "late_chroma"
CLASS_LABELS: Final = "class_labels"


@dataclass(frozen=True)
class Declarations:
    """The declarations of the chosen options.

    Attributes:
        words: by group and key, such as ``words["model"]["needs"]``; without the keys that an
            option does not declare.
    """

    words: Mapping[str, Mapping[str, tuple[str, ...]]]

    def of(self, group: str, key: str) -> tuple[str, ...]:
        """The words of a group under ``provides``, ``needs`` or ``accepts``; empty without them."""
        return self.words.get(group, {}).get(key, ())

    @property
    def provided(self) -> frozenset[str]:
        """All words that data set, compression and model provide."""
        return frozenset(word for group in PROVIDERS for word in self.of(group, "provides"))

    def missing(self) -> list[tuple[str, str]]:
        """Pairs of a group and a word that it needs and no group provides.

        Empty if the data set, compression or model does not have ``provides``: it is then not
        known what it provides.
        """
        if not all("provides" in self.words.get(group, {}) for group in PROVIDERS):
            return []
        needs = [(group, word) for group in CONSUMERS for word in self.of(group, "needs")]
        return [(group, word) for group, word in needs if word not in self.provided]

    def unusable(self) -> str | None:
        """The form of input that the compression provides and the model cannot use, if any."""
        usable = (*self.of("model", "needs"), *self.of("model", "accepts"))
        given = self.of("compression", "provides")
        words = (word for word in (COEFFICIENTS, LATE_CHROMA) if word in given)
        return next((word for word in words if word not in usable), None)


def split(config: Mapping[str, Any]) -> tuple[dict[str, Any], Declarations]:
    """Split a configuration into its settings and its declarations.

    Args:
        config: plain and nested, interpolations resolved.

    Raises:
        UserError: for a declaration that is not a list of words.
    """
    settings: dict[str, Any] = {}
    words: dict[str, dict[str, tuple[str, ...]]] = {}
    for group, node in config.items():
        settings[group] = without_declarations(node) if isinstance(node, dict) else node
        if group in GROUPS and isinstance(node, dict):
            words[group] = {
                key: _list_of_words(f"{group}.{key}", node[key]) for key in WORDS if key in node
            }
    return settings, Declarations(words)


def mismatches(
    declared: Declarations, choices: Mapping[str, str | None], settings: Mapping[str, Any]
) -> Iterator[UserError]:
    """An error for each missing word, and for coefficients that the model cannot read.

    Args:
        declared: of the chosen options.
        choices: the chosen option of each group.
        settings: the configuration without declarations, see ``split``.
    """
    unusable = declared.unusable()
    model, compression = choices.get("model"), choices.get("compression")
    if unusable == COEFFICIENTS:
        yield UserError(
            "model",
            f"model={model} takes pixels but compression={compression} makes coefficients",
            "add compression=none",
        )
    elif unusable == LATE_CHROMA:
        yield UserError(
            "compression",
            f"compression={compression} needs a ResNet, which chroma can join late, not "
            f"model={model}",
            "add compression=block_stem",
        )
    for group, word in declared.missing():
        if word == CLASS_LABELS:
            yield UserError(
                "task.class_agnostic",
                f"task.class_agnostic=false needs {word}, which model={model} does not provide: "
                "its detections have no classes",
                "add task.class_agnostic=true",
            )
            continue
        given = "; ".join(
            f"{provider}={choices.get(provider)} provides {', '.join(words)}"
            for provider in PROVIDERS
            if provider != group and (words := declared.of(provider, "provides"))
        )
        line = f"{group}={choices.get(group)} needs {word}: {given}"
        yield UserError("model", line, _hint(declared, settings))


def _hint(declared: Declarations, settings: Mapping[str, Any]) -> str:
    """Names the options of the first group in which another option would fix all mismatches."""
    for group in PROVIDERS:
        compatible = []
        for option in options(group):
            changed = Declarations(
                {**declared.words, group: _words(group, option, declared, settings)}
            )
            if not changed.missing() and changed.unusable() is None:
                compatible.append(option)
        if compatible:
            return f"choose {group}={'|'.join(compatible)}"
    return "choose another model and data set"


def _words(
    group: str, option: str, declared: Declarations, settings: Mapping[str, Any]
) -> dict[str, tuple[str, ...]]:
    """The declarations of ``option``, if it were chosen in ``group``."""
    # Interpolations in declarations may refer to settings and declarations of the other groups.
    others = {name: {**settings[name], **words} for name, words in declared.words.items()}
    cfg = OmegaConf.create({**settings, **others, group: read_option(group, option)})
    declarations = {}
    for key in WORDS:
        if key in cfg[group]:
            value = OmegaConf.to_container(cfg[group][key], resolve=True)
            declarations[key] = _list_of_words(f"{group}.{key}", value)
    return declarations


def _list_of_words(key: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        return tuple(word for word in value if word)
    raise UserError(key, f"{key}={value}: expected a list of words, such as [images]")
