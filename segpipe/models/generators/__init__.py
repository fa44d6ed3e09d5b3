"""The generators: a file for each kind, behind the protocol in protocol.py."""
