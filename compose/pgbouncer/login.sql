-- What PgBouncer asks PostgreSQL. Run as a superuser in the database of the apps, and put the password into users.txt,
-- as "pgbouncer" "the password".
CREATE ROLE pgbouncer LOGIN CONNECTION LIMIT 4;
-- \password pgbouncer
CREATE SCHEMA pgbouncer;
GRANT USAGE ON SCHEMA pgbouncer TO pgbouncer;
-- Of the logins of apps alone, and for PgBouncer alone.
CREATE FUNCTION pgbouncer.verifier_of(name text, OUT login text, OUT verifier text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$ SELECT usename::text, passwd FROM pg_shadow WHERE usename = name AND starts_with(name, 'as_') $$;
REVOKE ALL ON FUNCTION pgbouncer.verifier_of(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION pgbouncer.verifier_of(text) TO pgbouncer;
