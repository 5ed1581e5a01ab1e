"""Declarations of options: ``provides``, ``needs`` and ``accepts`` in their YAML files.

They are lists of words. What a model and a task need must be provided by the data set, the
compression or the model. Declarations are only checked: they are removed from a configuration
before anything is built or stored.

========================  ====================================================================
``provides`` of a         words
========================  ====================================================================
data set                  targets: ``classes``, ``boxes``, ``pairs``; inputs: ``images`` (RGB),
                          ``channels`` (RGB and more), ``photos`` (two of a pair), ``features``
                          (of photos); ``bitstream``: coefficients can be read from its files
compression               ``coefficients`` in place of pixels
model                     ``logits``, ``detections``, ``preferences``
========================  ====================================================================

Option files of your own may use other words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from omegaconf import OmegaConf

from research.config.options import DECLARATIONS, options, read_option, without_declarations
from research.utils.errors import UserError

PROVIDERS: Final = ("dataset", "compression", "model")
NEEDERS: Final = ("task", "model")
GROUPS: Final = ("dataset", "compression", "model", "task")
COEFFICIENTS: Final = "coefficients"


@dataclass(frozen=True)
class Declarations:
    """The words of a configuration.

    Attributes:
        words: by group and kind, such as ``words["model"]["needs"]``; only kinds that the option
            declares.
    """

    words: Mapping[str, Mapping[str, tuple[str, ...]]]

    def of(self, group: str, kind: str) -> tuple[str, ...]:
        """The words of one kind; empty if the option of the group declares none."""
        return self.words.get(group, {}).get(kind, ())

    @property
    def provided(self) -> frozenset[str]:
        """Everything that data set, compression and model provide."""
        return frozenset(word for group in PROVIDERS for word in self.of(group, "provides"))

    def missing(self) -> list[tuple[str, str]]:
        """Pairs of a group and a word that it needs and that is not provided.

        Empty if the data set, compression or model does not declare what it provides.
        """
        if not all("provides" in self.words.get(group, {}) for group in PROVIDERS):
            return []
        needs = [(group, word) for group in NEEDERS for word in self.of(group, "needs")]
        return [(group, word) for group, word in needs if word not in self.provided]

    def superfluous(self) -> bool:
        """Whether there are coefficients although the model reads pixels only."""
        readable = (*self.of("model", "needs"), *self.of("model", "accepts"))
        return COEFFICIENTS in self.of("compression", "provides") and COEFFICIENTS not in readable


def split(config: Mapping[str, Any]) -> tuple[dict[str, Any], Declarations]:
    """Split a configuration into settings and declarations.

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
                kind: _list_of_words(f"{group}.{kind}", node[kind])
                for kind in DECLARATIONS
                if kind in node
            }
    return settings, Declarations(words)


def mismatches(
    declared: Declarations, choices: Mapping[str, str | None], settings: Mapping[str, Any]
) -> Iterator[UserError]:
    """An error for every need that is not met, and for coefficients that the model cannot read.

    Args:
        declared: by the options of a configuration.
        choices: the chosen option of each group.
        settings: the configuration.
    """
    if declared.superfluous():
        yield UserError(
            "model",
            f"model={choices.get('model')} reads pixels but "
            f"compression={choices.get('compression')} makes coefficients",
            "add compression=none",
        )
    for group, word in declared.missing():
        provided = "; ".join(
            f"{provider}={choices.get(provider)} provides {', '.join(words)}"
            for provider in PROVIDERS
            if provider != group and (words := declared.of(provider, "provides"))
        )
        line = f"{group}={choices.get(group)} needs {word}: {provided}"
        yield UserError("model", line, _advice(declared, settings))


def _advice(declared: Declarations, settings: Mapping[str, Any]) -> str:
    """Advice: the options of one group with which every need is met."""
    for group in PROVIDERS:
        fitting = []
        for option in options(group):
            other = Declarations(
                {**declared.words, group: _words(group, option, declared, settings)}
            )
            if not other.missing() and not other.superfluous():
                fitting.append(option)
        if fitting:
            return f"choose {group}={'|'.join(fitting)}"
    return "choose another model and data set"


def _words(
    group: str, option: str, declared: Declarations, settings: Mapping[str, Any]
) -> dict[str, tuple[str, ...]]:
    """The declarations of an option, evaluated as if it were chosen in its group."""
    # Declarations may interpolate settings and declarations of the other groups.
    others = {key: {**settings[key], **words} for key, words in declared.words.items()}
    cfg = OmegaConf.create({**settings, **others, group: read_option(group, option)})
    declared_words = {}
    for kind in DECLARATIONS:
        if kind in cfg[group]:
            value = OmegaConf.to_container(cfg[group][kind], resolve=True)
            declared_words[kind] = _list_of_words(f"{group}.{kind}", value)
    return declared_words


def _list_of_words(key: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        return tuple(word for word in value if word)
    raise UserError(key, f"{key}={value}: expected a list of words, such as [images]")
