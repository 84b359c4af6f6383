"""Who may call what, how often, and who did.

scopes.py   which scope a call asks for
tokens.py   tokens: made, kept as hashes, revoked, recognised
tls.py      the server's certificates, read again when they change
limits.py   calls per second and at once, per identity
audit.py    one JSON line for each call

Nothing here loads torch.
"""
