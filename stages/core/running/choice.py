"""The profile of a study that `make repro PROFILE=name` runs, told to DVC.

dvc.yaml is a template: DVC fills in `profile` and `variants` from params.yaml and has no option that says otherwise. So
whoever calls DVC here replaces both in what DVC has read, in its own process. No file changes, and a run that is killed
leaves nothing behind.
"""

import os

from stages.core.settings import params


def apply() -> None:
    """From now on DVC in this process resolves dvc.yaml for the chosen profile, without the variants it leaves out."""
    from dvc.parsing.context import Context

    read = Context.load_from_vars

    def chosen(self: Context, *arguments: object, default: str | None = None, **options: object) -> None:
        read(self, *arguments, default=default, **options)
        if default and "variants" in self and "profile" in self:  # not the `vars` of a single stage
            self["profile"] = profile = os.environ.get(params.PROFILE) or self["profile"].value
            for name, variant in self["variants"].value.items():
                if profile in variant.get("skip", []):
                    del self["variants"][name]

    Context.load_from_vars = chosen
