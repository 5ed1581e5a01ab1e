"""What options declare: ``provides``, ``needs`` and ``accepts`` in their YAML files.

A data set and a compression say what they provide, a model and a task what they need of the others
and provide to them. These words are for checks alone. They are taken out of a configuration before
anything is built or stored.

========================  ====================================================================
``provides`` of a         words
========================  ====================================================================
data set                  targets: ``classes``, ``boxes``, ``pairs``; inputs: ``images`` (RGB),
                          ``channels`` (RGB and more), ``photos`` (two of a pair), ``features``
                          (of photos); ``bitstream``: coefficients can be read from its files
compression               ``coefficients`` in place of pixels
model                     ``logits``, ``detections``, ``preferences``
========================  ====================================================================

Other words may be used in option files of one's own.
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
        words: of each group and kind of word (``words["model"]["needs"]``), as declared; a kind
            that an option does not declare is not there.
    """

    words: Mapping[str, Mapping[str, tuple[str, ...]]]

    def of(self, group: str, kind: str) -> tuple[str, ...]:
        """What the option of a group declares; empty where it declares nothing."""
        return self.words.get(group, {}).get(kind, ())

    @property
    def provided(self) -> frozenset[str]:
        """Everything that data set, compression and model provide."""
        return frozenset(word for group in PROVIDERS for word in self.of(group, "provides"))

    def missing(self) -> list[tuple[str, str]]:
        """Groups with the words that they need and nobody provides.

        Empty where a data set, compression or model does not declare what it provides.
        """
        if not all("provides" in self.words.get(group, {}) for group in PROVIDERS):
            return []
        needs = [(group, word) for group in NEEDERS for word in self.of(group, "needs")]
        return [(group, word) for group, word in needs if word not in self.provided]

    def superfluous(self) -> bool:
        """Whether there are coefficients that the model can do nothing with."""
        taken = (*self.of("model", "needs"), *self.of("model", "accepts"))
        return COEFFICIENTS in self.of("compression", "provides") and COEFFICIENTS not in taken


def split(config: Mapping[str, Any]) -> tuple[dict[str, Any], Declarations]:
    """A configuration without its declarations, and these.

    Args:
        config: plain and nested, interpolations resolved.

    Raises:
        UserError: for a declaration that is no list of words.
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
    """A line for every need that is not met, and for coefficients that the model cannot take.

    Args:
        declared: by the options of a configuration.
        choices: the chosen option of each group.
        settings: the configuration.
    """
    if declared.superfluous():
        yield UserError(
            "model",
            f"model={choices.get('model')} takes pixels but "
            f"compression={choices.get('compression')} makes coefficients",
            "add compression=none",
        )
    for group, word in declared.missing():
        given = "; ".join(
            f"{provider}={choices.get(provider)} provides {', '.join(words)}"
            for provider in PROVIDERS
            if provider != group and (words := declared.of(provider, "provides"))
        )
        line = f"{group}={choices.get(group)} needs {word}: {given}"
        yield UserError("model", line, _advice(declared, settings))


def _advice(declared: Declarations, settings: Mapping[str, Any]) -> str:
    """The options of one group under which every need is met."""
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
    """What an option would declare in the place of the one that is chosen."""
    # Conditions may look at any setting or declaration of the other groups.
    others = {key: {**settings[key], **words} for key, words in declared.words.items()}
    cfg = OmegaConf.create({**settings, **others, group: read_option(group, option)})
    found = {}
    for kind in DECLARATIONS:
        if kind in cfg[group]:
            value = OmegaConf.to_container(cfg[group][kind], resolve=True)
            found[kind] = _list_of_words(f"{group}.{kind}", value)
    return found


def _list_of_words(key: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        return tuple(word for word in value if word)
    raise UserError(key, f"{key}={value}: expected a list of words, such as [images]")
