-- For the Postgres of compose.yaml, at its first start; on a server of your own an administrator runs the like of it.
-- The programs' user owns its database and nothing else: it may make its schemas, not roles.
\set password `cat /run/secrets/postgres_dsync_password`
create role dsync login password :'password';
create database dsync owner dsync;
-- For readers: `grant dsync_reader to …` your application's role, or dsync_tenant where it should see one organization only.
create role dsync_reader nologin;
create role dsync_tenant nologin;
