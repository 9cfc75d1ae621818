"""Is there such a model? Asked once and quickly, before transformers asks for every file of it, each many times over.

A misspelt folder looks like a hub name. Where the hub cannot be reached, its client tries again for half a minute a file, with
lines of its own; where it can, it says "repository not found" to someone who meant a folder.
"""

import functools
from pathlib import Path

from p3o.errors import P3OError, first_line

_ASKED_FOR = "config.json"
_TIMEOUT = 10.0


def refuse_unknown(path: str, what: str) -> None:
    """Stop at what is neither a folder, nor in the hub's cache, nor on the hub.

    What the hub answers otherwise (gated, private, out of order) is left to the loading, which knows more of it.

    Args:
        path: folder or hub name.
        what: how an error names it, such as "model 'gpt2'".

    Raises:
        P3OError: if there is no such model, or the hub cannot be reached.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    if Path(path).exists() or constants.is_offline_mode():
        return
    problem = None
    if not _is_hub_name(path):
        problem = "there is no such folder"
    elif try_to_load_from_cache(path, _ASKED_FOR) is None:
        problem = _asked_of_the_hub(path)
    if problem is not None:
        raise P3OError(f"{what}: {problem}; give a folder that save_pretrained wrote, or a hub name")


def _is_hub_name(path: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(path)
    except HFValidationError:
        return False
    return True


@functools.cache
def _asked_of_the_hub(name: str) -> str | None:
    """What is wrong with the name; None if nothing is."""
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url

    try:
        get_hf_file_metadata(hf_hub_url(name, _ASKED_FOR), timeout=_TIMEOUT)
    except errors.GatedRepoError:
        return None
    except errors.RepositoryNotFoundError:
        return "neither a local folder nor a hub model that you can access"
    except errors.HfHubHTTPError:
        return None
    except (OSError, getattr(errors, "HTTPError", OSError)) as error:  # the latter is its HTTP client's
        return f"not a local folder, and the hub cannot be reached ({first_line(error)})"
    return None
