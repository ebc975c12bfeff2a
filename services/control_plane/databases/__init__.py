"""Apps' own databases on registered PostgreSQL servers: made, guarded by a login per epoch, dropped."""
