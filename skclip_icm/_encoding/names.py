"""What a name may mean that is none of a model of open_clip."""

import difflib
import os
import re

# As transformers names the weights that open_clip has under the tag "openai".
_OPENAI = re.compile(r"openai/clip-vit-(base|large)-patch(\d+)(-336)?", re.IGNORECASE)
_REPOSITORY = re.compile(r"(https?://huggingface\.co/)?([\w.-]+/[\w.-]+)/?")


def refuse_transformers(model_name):
    """Raise ValueError if a name is of OpenAI's weights in the form of transformers."""
    if hf := _OPENAI.fullmatch(_repository(model_name.removeprefix("hf-hub:"))):
        size = {"base": "B", "large": "L"}[hf[1].lower()]
        raise ValueError(
            f"model_name={model_name!r} is a name of transformers. Its weights in "
            f'open_clip: CLIPFeaturizer("ViT-{size}-{hf[2]}{hf[3] or ""}", "openai").'
        )


def refuse_unknown(model_name, known):
    """Raise ValueError that says what an unknown name may be meant for."""
    if os.path.isdir(os.path.expanduser(model_name)):
        hint = f" Of the folder there, write 'local-dir:{model_name}'."
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


def _repository(model_name):
    """Return the organisation/repository of a name or an address, or ''."""
    found = _REPOSITORY.fullmatch(model_name)
    return found[2] if found else ""
