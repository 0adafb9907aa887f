"""What a name may mean that is none of a model of open_clip."""

import difflib
import os
import re

# As transformers names the weights that open_clip has under the tag "openai".
_OPENAI = re.compile(r"openai/clip-vit-(base|large)-patch(\d+)(-336)?", re.IGNORECASE)
# How the two schemes are written elsewhere.
_SCHEMES = {
    "local-dir": ("local-dir", "localdir", "local", "dir", "file"),
    "hf-hub": ("hf-hub", "hf", "hub", "huggingface"),
}
_REPOSITORY = re.compile(r"(https?://huggingface\.co/)?([\w.-]+/[\w.-]+)/?")


def refuse_transformers(model_name):
    """Raise ValueError if a name is of OpenAI's weights in the form of transformers."""
    if hf := _OPENAI.fullmatch(_repository(model_name.removeprefix("hf-hub:"))):
        size = {"base": "B", "large": "L"}[hf[1].lower()]
        raise ValueError(
            f"model_name={model_name!r} is a name of transformers. Its weights in "
            f'open_clip: CLIPFeaturizer("ViT-{size}-{hf[2]}{hf[3] or ""}", "openai").'
        )


def check_repository(model_name):
    """Raise ValueError if what follows "hf-hub:" is no name of a repository."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    given = model_name.removeprefix("hf-hub:")
    try:
        validate_repo_id(given)
    except HFValidationError as error:
        name = _repository(given.strip().partition("@")[0])
        hint = f" Did you mean 'hf-hub:{name}'?" if name else ""
        raise ValueError(
            f"model_name={model_name!r}, expected 'hf-hub:organisation/repository'."
            f"{hint} Of another revision than the main one, download the files and "
            f"give 'local-dir:path'. huggingface_hub says: {error}"
        ) from error


def refuse_unknown(model_name, known):
    """Raise ValueError that says what an unknown name may be meant for."""
    if os.path.isdir(os.path.expanduser(model_name)):
        hint = f" Of the folder there, write 'local-dir:{model_name}'."
    elif meant := _with_scheme(model_name):
        hint = f" Did you mean {meant!r}?"
    elif repository := _repository(model_name):
        hint = (
            f" If it is a repository of Hugging Face with weights for open_clip, write "
            f"'hf-hub:{repository}'."
        )
    else:
        hint = suggest(model_name.replace("/", "-"), known)
    raise ValueError(
        f"model_name={model_name!r} is not known.{hint} open_clip.list_models() lists "
        "all names; 'hf-hub:organisation/repository', 'local-dir:path' and 'demo' are "
        "possible too."
    )


def suggest(word, known):
    """Return a question that names what is spelt almost like `word`."""
    lowered = {other.lower(): other for other in known}
    close = difflib.get_close_matches(word.lower(), lowered, n=5, cutoff=0.5)
    return f" Did you mean {[lowered[c] for c in close]}?" if close else ""


def _with_scheme(model_name):
    """Return a name with its scheme as it should be written, or ''."""
    scheme, colon, rest = model_name.strip().partition(":")
    scheme = scheme.lower().replace("_", "-")
    for right, others in _SCHEMES.items():
        if colon and scheme in others:
            rest = rest.strip() if right == "local-dir" else rest.strip("/ ")
            return f"{right}:{rest}"
    return ""


def _repository(model_name):
    """Return the organisation/repository of a name or an address, or ''."""
    found = _REPOSITORY.fullmatch(model_name)
    return found[2] if found else ""
