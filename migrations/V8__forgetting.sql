-- Forgetting people. Whose attributes are scrubbed keeps its row, its registers and its place in history: old events,
-- read again, lose against the registers as before, and cannot bring the attributes back. Who is erased keeps only the
-- id, here, so that what is said of them later is left out, and purged from the log.

create table dsync.erased (
    user_id text collate "C" primary key,
    erased_at timestamptz not null
);
comment on table dsync.erased is 'Directory users that were erased. What is said of them is not applied, and purged from the log as it is read.';

create table dsync.purges (
    stream_created timestamptz not null,
    seq bigint not null,
    noted_at timestamptz not null default now(),
    primary key (stream_created, seq)
);
comment on table dsync.purges is 'Messages of the log that speak of erased people and are still to be purged: noted when they are read, struck out when they are gone.';

-- What stays of a row in history when its object is forgotten: ids, times, and whether a user was active.
create function dsync.blank(shown jsonb) returns jsonb language sql immutable
return (
    select jsonb_object_agg(v.key, v.value) from jsonb_each(shown) as v
    where v.key = any('{id,directory_id,organization_id,active,created_at,updated_at}')
);

-- Deleted objects that still have attributes: what upkeep looks for.
create index directories_to_scrub on dsync.directories (gone_at)
where seen_at <= gone_at and (name is not null or type is not null or state is not null or external_key is not null);
create index users_to_scrub on dsync.users (gone_at)
where seen_at <= gone_at and (
    idp_id is not null or email is not null or username is not null or first_name is not null or last_name is not null
    or name is not null or job_title is not null or state is not null or role is not null or roles <> '{}'
    or custom_attributes is not null or raw_attributes is not null
);
create index groups_to_scrub on dsync.groups (gone_at)
where seen_at <= gone_at and (idp_id is not null or name is not null or raw_attributes is not null);

do $$
declare
    missing text[] := dsync.grant_readers();
begin
    if missing <> '{}' then
        raise notice 'readers have no access until an administrator runs: % and then, as the owner: select dsync.grant_readers()',
            array_to_string(missing, ' ');
    end if;
end
$$;
