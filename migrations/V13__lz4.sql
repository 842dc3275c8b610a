-- Large values are compressed by lz4 where the server has it, otherwise as before. A change whose images take more than 2 kB
-- is compressed before it is stored, and what Postgres does by itself (pglz) took a fifth of all that an update cost where the
-- attributes were of the kind that hardly gets smaller (hashes).
--
-- Values that are there stay as they are.
do $$
declare
    place record;
begin
    for place in
        select c.oid::regclass as relation, a.attname as name
        from pg_class as c join pg_attribute as a on a.attrelid = c.oid
        where c.relkind in ('r', 'p') and a.atttypid = 'jsonb'::regtype and a.attnum > 0 and not a.attisdropped and (
            c.oid in ('dsync.users'::regclass, 'dsync.groups'::regclass, 'dsync.changes'::regclass)
            or c.oid in (select i.inhrelid from pg_inherits as i where i.inhparent = 'dsync.changes'::regclass)
        )
        order by c.relname, a.attnum
    loop
        execute format('alter table %s alter %I set compression lz4', place.relation, place.name);
    end loop;
exception
    when feature_not_supported then
        raise notice 'this server was built without lz4: large values are compressed by pglz';
end
$$;

-- As in V5; new months take compression over.
create or replace function dsync.prepare_history(until timestamptz) returns text[]
language plpgsql set timezone = 'UTC' set search_path = pg_catalog as $$
declare
    month timestamptz := date_trunc('month', now());
    name text;
    made text[] := '{}';
begin
    while month <= until loop
        name := 'changes_' || to_char(month, 'YYYY_MM');
        if to_regclass('dsync.' || name) is null then
            -- Writers wait, readers do not.
            lock table dsync.changes in share row exclusive mode;
            execute format(
                'create table dsync.%I (
                    like dsync.changes including defaults including constraints including compression
                )',
                name
            );
            execute format('alter table dsync.%I enable row level security', name);
            execute format(
                'with moved as (
                    delete from dsync.changes_unprepared where recorded_at >= %L and recorded_at < %L returning *
                ) insert into dsync.%I select * from moved',
                month, month + interval '1 month', name
            );
            execute format(
                'alter table dsync.changes attach partition dsync.%I for values from (%L) to (%L)',
                name, month, month + interval '1 month'
            );
            made := made || name;
        end if;
        month := month + interval '1 month';
    end loop;
    return made;
end
$$;
