"""The store: the catalog's records, one ordered change log, and the mirror that answers reads."""
