"""The catalog in an SQL database: SQLite for one control plane, PostgreSQL for many."""
