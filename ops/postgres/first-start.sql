-- Run by the Postgres of compose.yaml at its first start. On your own server an administrator runs the equivalent.
-- The programs' user owns its database and nothing else: it may create its schemas, but no roles.
\set password `cat /run/secrets/postgres_dsync_password`
create role dsync login password :'password';
create database dsync owner dsync;
-- For readers: `grant dsync_reader to …` your application's role, or dsync_tenant if it should see one organization only.
create role dsync_reader nologin;
create role dsync_tenant nologin;
