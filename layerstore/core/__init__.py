"""Floor 1: the typed faces of the C machines; the only importer of the extension."""
