"""Publishing a model folder on the Hugging Face hub, behind the standard login, and only when asked.

What can go wrong is found before training starts: ``HubTarget.prepare`` checks name and login and makes the repository;
``HubTarget.push`` uploads when the model is there.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p3o.errors import P3OError, first_line


@dataclass(frozen=True)
class HubTarget:
    """A repository of models.

    Attributes:
        repository: "name" or "owner/name".
        private: None leaves it to the hub, as in transformers and TRL: public unless the owner's default is private.
    """

    repository: str
    private: bool | None = None

    def prepare(self) -> None:
        """Make the repository if it is not there.

        Raises:
            P3OError: if the name is no repository's, this machine is to stay offline, no one is logged in, or the hub refuses.
        """
        import huggingface_hub as hub
        from huggingface_hub import constants
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils._validators import validate_repo_id

        try:
            validate_repo_id(self.repository)
        except HFValidationError as error:
            raise P3OError(f"--push-to-hub {self.repository}: {first_line(error)}") from error
        if constants.is_offline_mode():
            raise P3OError(f"--push-to-hub {self.repository}: HF_HUB_OFFLINE is set; unset it or push later")
        if hub.get_token() is None:
            raise P3OError(
                f"--push-to-hub {self.repository}: not logged in to the hub; run `hf auth login` or set HF_TOKEN"
            )
        try:
            hub.HfApi().create_repo(self.repository, private=self.private, exist_ok=True)
        except _refusals() as error:
            raise P3OError(f"--push-to-hub {self.repository}: the hub refuses: {first_line(error)}") from error

    def push(self, folder: Path, *, message: str) -> str:
        """Upload a model folder and return its address.

        Raises:
            P3OError: if the hub refuses; the folder stays as it is.
        """
        import huggingface_hub as hub

        try:
            info: Any = hub.HfApi().upload_folder(
                repo_id=self.repository, folder_path=folder, commit_message=message, repo_type="model"
            )
        except _refusals() as error:
            raise P3OError(
                f"--push-to-hub {self.repository}: the upload failed: {first_line(error)}; the complete model is "
                f"in {folder}; upload it with `hf upload {self.repository} {folder}`"
            ) from error
        return str(getattr(info, "repo_url", None) or f"https://huggingface.co/{self.repository}")

    def named(self, ending: str) -> "HubTarget":
        """The repository beside this one whose name ends in ``-ending``."""
        return HubTarget(f"{self.repository}-{ending}", self.private)


def _refusals() -> tuple[type[Exception], ...]:
    """What the hub's client raises when the hub says no or cannot be reached."""
    from huggingface_hub import errors

    return (errors.HfHubHTTPError, getattr(errors, "HTTPError", OSError), OSError, ValueError)
