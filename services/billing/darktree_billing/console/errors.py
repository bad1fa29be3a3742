"""What the console refuses.

ApiError
├── Unauthorized
│   └── SignInFirst     401, answered by the way to the sign-in page
├── Forbidden
│   ├── ForgedForm      403 forged_form
│   └── TeamOnly        403 team_only
└── NotFound
    └── LinkExpired     404 link_expired: used, too old, or never made
"""

from darktree_kit.errors import Forbidden, NotFound, Unauthorized


class SignInFirst(Unauthorized):
    code = "sign_in_first"

    def __init__(self, landing: str) -> None:
        super().__init__("Sign in first.")
        self.headers.pop("WWW-Authenticate")  # no browser shall ask for a password
        self.landing = landing


class ForgedForm(Forbidden):
    code = "forged_form"

    def __init__(self) -> None:
        super().__init__(
            "This form is not from a page of yours, or its page is too old. Go back, reload, try again."
        )


class TeamOnly(Forbidden):
    code = "team_only"

    def __init__(self) -> None:
        super().__init__("This page is for the platform team.")


class LinkExpired(NotFound):
    code = "link_expired"

    def __init__(self) -> None:
        super().__init__("This link was used already, or is too old.")
