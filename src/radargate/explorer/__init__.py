"""What the gates of a composition do with a text, site by site and token by token."""
