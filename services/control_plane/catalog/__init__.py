"""The catalog of apps: commands that store what is wanted, queries that tell what is."""
