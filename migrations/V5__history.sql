-- History: one row in dsync.changes for every change of what the views show, written by the statements that change it.
-- So whoever writes the projection, history has it; what changes nothing that is shown leaves no row.
--
-- Numbers are given in the order of commits. The first change of a transaction locks the one row of dsync.feed to the
-- transaction's end, and only then are numbers drawn: when a reader sees number n, every smaller one is either visible
-- to it or will never be. A horizon of transaction ids in the view would spare the lock, but hide every change behind
-- the oldest writing transaction of the whole server, whoever's it is, and its numbers would start over in a restored
-- database. The lock makes batches with changes serial; they nearly are anyway, one projector advancing a lane.

create sequence dsync.change_ids;

create table dsync.changes (
    change_id bigint not null,
    recorded_at timestamptz not null,
    occurred_at timestamptz,
    organization_id text collate "C",
    directory_id text collate "C" not null,
    entity text not null check (entity in ('directory', 'user', 'group', 'membership')),
    entity_id text collate "C" not null,
    operation text not null check (operation in ('created', 'updated', 'deleted')),
    changed text[] not null default '{}',
    before jsonb,
    after jsonb,
    event_id text collate "C",
    source text,
    primary key (change_id, recorded_at)
) partition by range (recorded_at);
create index changes_entity on dsync.changes (entity_id, change_id);
create index changes_organization on dsync.changes (organization_id, change_id);
create index changes_recorded_at on dsync.changes using brin (recorded_at);
comment on table dsync.changes is
    'What the views showed, change by change. One partition a month, made ahead and dropped by the projector''s upkeep. Readers use directory.changes.';

-- Only what was recorded in a month that nobody prepared: writing must not depend on upkeep.
create table dsync.changes_unprepared partition of dsync.changes default;

create table dsync.feed (
    only_row boolean primary key default true check (only_row),
    recorded_at timestamptz not null default '-infinity'
) with (fillfactor = 10);
insert into dsync.feed default values;
comment on table dsync.feed is
    'One row: when the newest change was recorded. Whoever records changes holds its lock to the end of the transaction.';

create table dsync.history (
    only_row boolean primary key default true check (only_row),
    begins_at timestamptz not null
);
insert into dsync.history (begins_at) values (clock_timestamp());
comment on table dsync.history is 'One row: since when history is complete. It moves on when old partitions are dropped.';

-- Makes the partitions of the months from now to `until`. Returns the names of those made.
create function dsync.prepare_history(until timestamptz) returns text[]
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
            execute format('create table dsync.%I (like dsync.changes including defaults including constraints)', name);
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
comment on function dsync.prepare_history(timestamptz) is 'Makes the partitions of dsync.changes up to a moment.';
select dsync.prepare_history(now() + interval '2 months');

-- Drops the partitions that end at or before `before`. Returns the names of those dropped.
create function dsync.drop_history(before timestamptz) returns text[]
language plpgsql set timezone = 'UTC' set search_path = pg_catalog as $$
declare
    name text;
    ends timestamptz;
    dropped text[] := '{}';
begin
    for name in
        select c.relname from pg_inherits as i join pg_class as c on c.oid = i.inhrelid
        where i.inhparent = 'dsync.changes'::regclass and c.relname ~ '^changes_\d{4}_\d\d$'
        order by c.relname
    loop
        ends := to_timestamp(right(name, 7), 'YYYY_MM') + interval '1 month';
        -- Also when `before` is null: drop nothing.
        exit when (ends <= before) is not true;
        execute format('drop table dsync.%I', name);
        update dsync.history set begins_at = greatest(begins_at, ends);
        dropped := dropped || name;
    end loop;
    return dropped;
end
$$;
comment on function dsync.drop_history(timestamptz) is 'Drops the partitions of dsync.changes that end before a moment.';

-- The moment at which this transaction's changes are recorded: one for all of them, later than any other's before.
create function dsync.recording() returns timestamptz
language plpgsql set search_path = pg_catalog as $$
declare
    recorded_at timestamptz := nullif(current_setting('dsync.recorded_at', true), '')::timestamptz;
begin
    if recorded_at is null then
        update dsync.feed as f
        set recorded_at = greatest(clock_timestamp(), f.recorded_at + interval '1 microsecond')
        returning f.recorded_at into recorded_at;
        perform set_config('dsync.recorded_at', recorded_at::text, true);
    end if;
    return recorded_at;
end
$$;

-- At commit, once: wakes who listens. The row of dsync.feed was written once, with the first change.
create function dsync.wake() returns trigger
language plpgsql set search_path = pg_catalog as $$
begin
    perform pg_notify('directory_changes', current_setting('dsync.last_change'))
    where nullif(current_setting('dsync.last_change', true), '') is not null;
    return null;
end
$$;
create constraint trigger wake after update on dsync.feed
deferrable initially deferred for each row execute function dsync.wake();

create function dsync.source_name(code text) returns text language sql immutable
return case code when 'a' then 'webhook' when 'b' then 'events_api' when 'c' then 'sweep' when 'erase' then 'erase' end;

-- The rows that make one change. An object that moves to another organization leaves the one and enters the other:
-- each tenant is told what it sees, and nothing of the other's.
create function dsync.steps(before jsonb, after jsonb, unmarked text) returns table (
    operation text, organization_id text, changed text[], was jsonb, becomes jsonb
) language sql immutable
begin atomic
    select 'deleted', before ->> 'organization_id', '{}'::text[], before, null::jsonb
    where before is not null
        and (after is null or before ->> 'organization_id' is distinct from after ->> 'organization_id')
    union all
    select 'created', after ->> 'organization_id', '{}'::text[], null::jsonb, after
    where after is not null
        and (before is null or before ->> 'organization_id' is distinct from after ->> 'organization_id')
    union all
    select 'updated', after ->> 'organization_id', c.names, before, after
    from (
        select array_agg(a.key order by a.key) as names
        from jsonb_each(after) as a
        where a.value is distinct from before -> a.key and a.key <> unmarked
    ) as c
    where c.names is not null and before is not null
        and before ->> 'organization_id' is not distinct from after ->> 'organization_id';
end;

-- The trigger functions. A statement's own rows come in transition tables, which exist as the statement does: an insert
-- has no old rows, a deletion no new ones, and `on conflict do update` is an insert and an update. So each function is
-- made three times from one text, in which
--   {rows}   pairs old (o) and new (n) rows: a full join, which no plan makes a nested loop of,
--   {any}    is a transition table that is there,
--   {o}, {n} are the old and the new row as the view shows them, as JSON, which is what costs most here,
--   {differs} is whether they are shown differently, which is cheap to ask first: most writes of a membership's event
--            only note that its user and group were seen to look as they did.
-- The functions are planned once, maybe while the tables are empty: so they are told to look rows up in indexes. They
-- may not be told by statistics, which a transition table has none of.
--
-- What caused a change is what the greater register came from: the event by which an object was last gone, or the one
-- its attributes or its being seen came from. What goes or comes along with another object names that object's event.
-- A row that is deleted outright was erased (see V8); nothing else deletes rows.
do $migration$
declare
    directory_columns constant text := $$
        @.id, @.organization_id, @.name, @.type, @.state, @.external_key, @.created_at, @.updated_at$$;
    user_columns constant text := $$
        @.id, @.directory_id, @.organization_id, @.idp_id, @.email, @.username, @.first_name, @.last_name, @.name,
        @.job_title, @.state, @.role, @.roles, @.custom_attributes, @.raw_attributes, @.created_at, @.updated_at$$;
    group_columns constant text := $$
        @.id, @.directory_id, @.organization_id, @.idp_id, @.name, @.raw_attributes, @.created_at, @.updated_at$$;
    membership_columns constant text := $$
        @.group_id, @.user_id, @.directory_id, @.organization_id$$;
    -- The view's columns that follow from others, and the one whose moving is no change.
    directory_derived constant text := ', @.id as directory_id';
    user_derived constant text := $$, coalesce(@.state = 'active', false) as active$$;
    group_derived constant text := '';
    membership_derived constant text := ', @.seen_at';
    json constant text := '(select to_jsonb(r) from (select {columns}) as r)';

    -- Which record made the difference, for rows with all three registers; d is the new row's directory.
    cause constant text := $$
        cross join lateral (
            select case
                when n.id is null then 'erase'
                when not n.seen_at > n.gone_at
                    and (n.gone_at, n.gone_event, n.gone_source)
                        is distinct from (o.gone_at, o.gone_event, o.gone_source)
                    then 'gone'
                when (n.version_updated_at, n.version_observed_at, n.version_event, n.version_source, n.version_digest)
                    is distinct from (
                        o.version_updated_at, o.version_observed_at, o.version_event, o.version_source, o.version_digest
                    )
                    then 'version'
                when (n.seen_at, n.seen_event, n.seen_source) is distinct from (o.seen_at, o.seen_event, o.seen_source)
                    then 'seen'
                when (n.gone_at, n.gone_event, n.gone_source) is distinct from (o.gone_at, o.gone_event, o.gone_source)
                    then 'gone'
                else 'directory'
            end as kind
        ) as k
        cross join lateral (
            select
                case k.kind
                    when 'gone' then n.gone_event when 'version' then n.version_event when 'seen' then n.seen_event
                    when 'directory' then d.version_event
                end as event,
                case k.kind
                    when 'erase' then 'erase' when 'gone' then n.gone_source when 'version' then n.version_source
                    when 'seen' then n.seen_source when 'directory' then d.version_source
                end as source,
                case k.kind
                    when 'erase' then stamp when 'gone' then n.gone_at when 'version' then n.version_observed_at
                    when 'seen' then n.seen_at when 'directory' then d.version_observed_at
                end as at
        ) as c$$;

    insertion constant text := $$
        insert into dsync.changes (
            change_id, recorded_at, occurred_at, organization_id, directory_id, entity, entity_id, operation, changed,
            before, after, event_id, source
        )
        select
            nextval('dsync.change_ids'), stamp, nullif(x.at, '-infinity'), x.organization_id, x.directory_id,
            x.entity, x.entity_id, x.operation, x.changed, x.was, x.becomes, nullif(x.event, ''),
            dsync.source_name(x.source)
        from (
            select x.directory_id, x.entity, x.entity_id, x.event, x.source, x.at, s.*
            from x cross join lateral dsync.steps(x.before, x.after, {unmarked}) as s
            order by x.place, x.entity_id, s.operation desc
        ) as x;
        get diagnostics written = row_count;
        if written > 0 then
            perform set_config('dsync.last_change', currval('dsync.change_ids')::text, true);
        end if;$$;

    -- Users and groups: themselves, and the memberships that come and go with them.
    object constant text := $$
        with x as materialized (
            select
                1 as place, coalesce(n.id, o.id) as entity_id, coalesce(n.directory_id, o.directory_id) as directory_id,
                {entity} as entity, c.event, c.source, c.at,
                case when w.was then {o} end as before, case when w.becomes then {n} end as after
            from {rows}
            left join dsync.directories as od on od.id = o.directory_id
            left join dsync.directories as d on d.id = n.directory_id {cause}
            cross join lateral (
                select
                    coalesce(
                        o.seen_at > o.gone_at
                        and (od.id is null or (od.seen_at > od.gone_at and o.seen_at > od.gone_at)),
                        false
                    ) as was,
                    coalesce(
                        n.seen_at > n.gone_at
                        and (d.id is null or (d.seen_at > d.gone_at and n.seen_at > d.gone_at)),
                        false
                    ) as becomes
            ) as w
            where w.was is distinct from w.becomes or (w.becomes and {differs})
        ) {insertion}

        with moved as materialized (
            select
                coalesce(n.id, o.id) as id, o.directory_id as o_directory_id, o.seen_at as o_seen_at,
                o.gone_at as o_gone_at, n.directory_id as n_directory_id, n.seen_at as n_seen_at,
                n.gone_at as n_gone_at, c.event, c.source, c.at
            from {rows}
            left join dsync.directories as d on d.id = coalesce(n.directory_id, o.directory_id) {cause}
            where o.directory_id is distinct from n.directory_id
                or o.gone_at is distinct from n.gone_at
                or (o.seen_at > o.gone_at) is distinct from (n.seen_at > n.gone_at)
                or (o.seen_at > coalesce(d.gone_at, '-infinity'))
                    is distinct from (n.seen_at > coalesce(d.gone_at, '-infinity'))
        ), x as materialized (
            select
                1 as place, m.group_id || '/' || m.user_id as entity_id, m.directory_id, 'membership' as entity,
                v.event, v.source, v.at,
                case when w.was then {m} end as before,
                case when w.becomes then {m} end as after
            from moved as v
            join dsync.memberships as m on m.{mine} = v.id and m.seen_at > m.gone_at
            join {others} as t on t.id = m.{other} and t.directory_id = m.directory_id
            left join dsync.directories as d on d.id = m.directory_id
            cross join lateral (
                select m.seen_at > t.gone_at and t.seen_at > t.gone_at
                    and (d.id is null or (d.seen_at > d.gone_at and least(m.seen_at, t.seen_at) > d.gone_at)) as all_else
            ) as a
            cross join lateral (
                select
                    a.all_else and coalesce(
                        v.o_directory_id = m.directory_id and least(m.seen_at, v.o_seen_at) > v.o_gone_at
                        and (d.id is null or v.o_seen_at > d.gone_at),
                        false
                    ) as was,
                    a.all_else and coalesce(
                        v.n_directory_id = m.directory_id and least(m.seen_at, v.n_seen_at) > v.n_gone_at
                        and (d.id is null or v.n_seen_at > d.gone_at),
                        false
                    ) as becomes
            ) as w
            where w.was is distinct from w.becomes
        ) {insertion}$$;

    -- Directories: themselves, and all that comes and goes with them. What a directory holds is shown if it was seen
    -- after the directory's limit: when it was last gone, or never while it is gone, or always while it is unknown.
    directory constant text := $$
        with moved as materialized (
            select
                coalesce(n.id, o.id) as id, c.event, c.source, c.at,
                case when o.seen_at > o.gone_at then {o} end as before,
                case when n.seen_at > n.gone_at then {n} end as after,
                case when o.id is null then '-infinity' when o.seen_at > o.gone_at then o.gone_at else 'infinity' end
                    as o_limit,
                case when n.id is null then '-infinity' when n.seen_at > n.gone_at then n.gone_at else 'infinity' end
                    as n_limit
            from {rows} cross join lateral (select n.*) as d {cause}
        ), x as materialized (
            select
                1 as place, v.id as entity_id, v.id as directory_id, 'directory' as entity, v.event, v.source, v.at,
                v.before, v.after
            from moved as v
            union all
            select
                2, u.id, v.id, 'user', v.event, v.source, v.at,
                case when u.seen_at > v.o_limit then {u} end,
                case when u.seen_at > v.n_limit then {u} end
            from moved as v
            join dsync.users as u on u.directory_id = v.id and u.seen_at > u.gone_at
            where v.o_limit <> v.n_limit and (u.seen_at > v.o_limit) <> (u.seen_at > v.n_limit)
            union all
            select
                3, g.id, v.id, 'group', v.event, v.source, v.at,
                case when g.seen_at > v.o_limit then {g} end,
                case when g.seen_at > v.n_limit then {g} end
            from moved as v
            join dsync.groups as g on g.directory_id = v.id and g.seen_at > g.gone_at
            where v.o_limit <> v.n_limit and (g.seen_at > v.o_limit) <> (g.seen_at > v.n_limit)
            union all
            select
                4, m.group_id || '/' || m.user_id, v.id, 'membership', v.event, v.source, v.at,
                case when l.seen_at > v.o_limit then {m} end,
                case when l.seen_at > v.n_limit then {m} end
            from moved as v
            join dsync.memberships as m on m.directory_id = v.id and m.seen_at > m.gone_at
            join dsync.users as u on u.id = m.user_id and u.directory_id = v.id and least(m.seen_at, u.seen_at) > u.gone_at
            join dsync.groups as g
                on g.id = m.group_id and g.directory_id = v.id and least(m.seen_at, g.seen_at) > g.gone_at
            cross join lateral (select least(m.seen_at, u.seen_at, g.seen_at) as seen_at) as l
            where v.o_limit <> v.n_limit and (l.seen_at > v.o_limit) <> (l.seen_at > v.n_limit)
        ) {insertion}$$;

    -- Memberships. That one was only seen again (seen_at moved) is no change: a sweep would write one for each.
    membership constant text := $$
        with x as materialized (
            select
                1 as place, coalesce(n.group_id, o.group_id) || '/' || coalesce(n.user_id, o.user_id) as entity_id,
                coalesce(n.directory_id, o.directory_id) as directory_id, 'membership' as entity,
                c.event, c.source, c.at,
                case when w.was then {o} end as before,
                case when w.becomes then {n} end as after
            from {rows}
            left join dsync.users as u on u.id = coalesce(n.user_id, o.user_id)
            left join dsync.groups as g on g.id = coalesce(n.group_id, o.group_id)
            left join dsync.directories as od on od.id = o.directory_id
            left join dsync.directories as d on d.id = n.directory_id
            cross join lateral (
                select
                    coalesce(
                        o.directory_id = u.directory_id and o.directory_id = g.directory_id
                        and o.seen_at > greatest(o.gone_at, u.gone_at, g.gone_at)
                        and u.seen_at > u.gone_at and g.seen_at > g.gone_at
                        and (
                            od.id is null
                            or (od.seen_at > od.gone_at and least(o.seen_at, u.seen_at, g.seen_at) > od.gone_at)
                        ),
                        false
                    ) as was,
                    coalesce(
                        n.directory_id = u.directory_id and n.directory_id = g.directory_id
                        and n.seen_at > greatest(n.gone_at, u.gone_at, g.gone_at)
                        and u.seen_at > u.gone_at and g.seen_at > g.gone_at
                        and (
                            d.id is null
                            or (d.seen_at > d.gone_at and least(n.seen_at, u.seen_at, g.seen_at) > d.gone_at)
                        ),
                        false
                    ) as becomes
            ) as w
            cross join lateral (
                select case
                    when n.user_id is null then 'erase'
                    when w.was and not w.becomes and not n.seen_at > n.gone_at then 'gone'
                    when (n.seen_at, n.seen_event, n.seen_source)
                        is distinct from (o.seen_at, o.seen_event, o.seen_source)
                        then 'seen'
                    else 'directory'
                end as kind
            ) as k
            cross join lateral (
                select
                    case k.kind when 'gone' then n.gone_event when 'seen' then n.seen_event
                        when 'directory' then d.version_event end as event,
                    case k.kind when 'erase' then 'erase' when 'gone' then n.gone_source
                        when 'seen' then n.seen_source when 'directory' then d.version_source end as source,
                    case k.kind when 'erase' then stamp when 'gone' then n.gone_at
                        when 'seen' then n.seen_at when 'directory' then d.version_observed_at end as at
            ) as c
            where w.was is distinct from w.becomes or (w.becomes and {differs})
        ) {insertion}$$;

    wrapper constant text := $$
        create function dsync.{function}() returns trigger language plpgsql
        set search_path = pg_catalog set timezone = 'UTC' set jit = off
        set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
        as $function$
        declare
            stamp timestamptz;
            written bigint;
        begin
            -- A rebuild makes the same tables again: that is no news to readers.
            if current_setting('dsync.history', true) = 'off' or not exists (select from {any}) then
                return null;
            end if;
            stamp := dsync.recording();
            {body}
            return null;
        end
        $function$;
        create trigger {function} after {event} on {table} referencing {referencing}
        for each statement execute function dsync.{function}()$$;
    body text;
    statement text;
    target record;
    happening record;
begin
    for target in
        select * from (values
            ('directories', 'directory', directory, directory_columns, directory_derived, null, null, null,
                'o.id = n.id'),
            ('users', 'user', object, user_columns, user_derived, 'user_id', 'dsync.groups', 'group_id',
                'o.id = n.id'),
            ('groups', 'group', object, group_columns, group_derived, 'group_id', 'dsync.users', 'user_id',
                'o.id = n.id'),
            ('memberships', 'membership', membership, membership_columns, membership_derived, null, null, null,
                'o.group_id = n.group_id and o.user_id = n.user_id')
        ) as t (name, entity, body, columns, derived, mine, others, other, key)
    loop
        for happening in
            select * from (values
                ('insert', 'inserted', 'new_rows', 'new table as new_rows',
                    'new_rows as n left join (select * from new_rows limit 0) as o on {key}'),
                ('update', 'updated', 'new_rows', 'old table as old_rows new table as new_rows',
                    'old_rows as o full join new_rows as n on {key}'),
                ('delete', 'deleted', 'old_rows', 'old table as old_rows',
                    'old_rows as o left join (select * from old_rows limit 0) as n on {key}')
            ) as h (event, name, any_rows, referencing, rows)
        loop
            body := replace(replace(target.body, '{insertion}', insertion), '{cause}', cause);
            body := replace(body, '{unmarked}',
                case target.name when 'memberships' then quote_literal('seen_at') else quote_literal('') end);
            body := replace(body, '{rows}', replace(happening.rows, '{key}', target.key));
            body := replace(body, '{entity}', quote_literal(target.entity));
            body := replace(body, '{differs}', format(
                'row(%s) is distinct from row(%s)', replace(target.columns, '@', 'o'), replace(target.columns, '@', 'n')
            ));
            body := replace(body, '{o}', replace(replace(json, '{columns}', target.columns || target.derived), '@', 'o'));
            body := replace(body, '{n}', replace(replace(json, '{columns}', target.columns || target.derived), '@', 'n'));
            body := replace(
                body, '{m}', replace(replace(json, '{columns}', membership_columns || membership_derived), '@', 'm')
            );
            body := replace(body, '{u}', replace(replace(json, '{columns}', user_columns || user_derived), '@', 'u'));
            body := replace(body, '{g}', replace(replace(json, '{columns}', group_columns || group_derived), '@', 'g'));
            body := replace(body, '{mine}', coalesce(target.mine, ''));
            body := replace(body, '{others}', coalesce(target.others, ''));
            body := replace(body, '{other}', coalesce(target.other, ''));
            statement := replace(wrapper, '{body}', body);
            statement := replace(statement, '{function}', target.name || '_' || happening.name);
            statement := replace(statement, '{event}', happening.event);
            statement := replace(statement, '{any}', happening.any_rows);
            statement := replace(statement, '{referencing}', happening.referencing);
            statement := replace(statement, '{table}', 'dsync.' || target.name);
            execute statement;
        end loop;
    end loop;
end
$migration$;

create view directory.changes with (security_invoker = true) as
select
    change_id, recorded_at, occurred_at, organization_id, directory_id, entity, entity_id, operation, changed, before,
    after, event_id, source
from dsync.changes;

-- `moment`, if history reaches back to it.
create function dsync.kept(moment timestamptz) returns timestamptz
language plpgsql stable set search_path = pg_catalog as $$
declare
    begins_at timestamptz := (select h.begins_at from dsync.history as h);
begin
    if moment < begins_at then
        raise exception 'history is kept since %', begins_at using errcode = 'datetime_field_overflow';
    end if;
    return moment;
end
$$;

-- Backwards from now: what has changed since a moment looked then as it did before its first change since; all else
-- looked as it does now. So dropping old history takes nothing from the answers about the time that is kept.
create function directory.users_at(moment timestamptz) returns setof directory.users
language sql stable
begin atomic
    with since as (
        select distinct on (c.entity_id) c.entity_id, c.before
        from dsync.changes as c
        where c.entity = 'user' and c.recorded_at > dsync.kept(moment)
        order by c.entity_id, c.change_id
    )
    select u.* from directory.users as u where not exists (select from since as s where s.entity_id = u.id)
    union all
    select u.* from since as s cross join lateral jsonb_populate_record(null::directory.users, s.before) as u
    where s.before is not null;
end;

create function directory.groups_at(moment timestamptz) returns setof directory.groups
language sql stable
begin atomic
    with since as (
        select distinct on (c.entity_id) c.entity_id, c.before
        from dsync.changes as c
        where c.entity = 'group' and c.recorded_at > dsync.kept(moment)
        order by c.entity_id, c.change_id
    )
    select g.* from directory.groups as g where not exists (select from since as s where s.entity_id = g.id)
    union all
    select g.* from since as s cross join lateral jsonb_populate_record(null::directory.groups, s.before) as g
    where s.before is not null;
end;

create function directory.memberships_at(moment timestamptz) returns setof directory.memberships
language sql stable
begin atomic
    with since as (
        select distinct on (c.entity_id) c.entity_id, c.before
        from dsync.changes as c
        where c.entity = 'membership' and c.recorded_at > dsync.kept(moment)
        order by c.entity_id, c.change_id
    )
    select m.* from directory.memberships as m
    where not exists (select from since as s where s.entity_id = m.group_id || '/' || m.user_id)
    union all
    select m.* from since as s cross join lateral jsonb_populate_record(null::directory.memberships, s.before) as m
    where s.before is not null;
end;

comment on function directory.users_at(timestamptz) is
    'The rows that directory.users showed at a moment, by the time changes were recorded here. An error before history is kept.';
comment on function directory.groups_at(timestamptz) is
    'The rows that directory.groups showed at a moment, by the time changes were recorded here. An error before history is kept.';
comment on function directory.memberships_at(timestamptz) is
    'The rows that directory.memberships showed at a moment, by the time changes were recorded here. seen_at is the last before the next change. An error before history is kept.';

comment on view directory.changes is
    'Every change of what the views show. Poll with change_id > the last one handled, order by change_id; LISTEN directory_changes wakes.';
comment on column directory.changes.change_id is 'Ascending in the order of commits: once one is visible, no smaller one will appear. Not without gaps.';
comment on column directory.changes.recorded_at is 'When it was written here; one moment for all of a transaction.';
comment on column directory.changes.occurred_at is 'When it happened: the event''s created_at, or the sweep''s time.';
comment on column directory.changes.organization_id is 'The organization that sees this change. An object that moves to another is deleted in one and created in the other.';
comment on column directory.changes.directory_id is 'The directory it happened in.';
comment on column directory.changes.entity is 'directory, user, group or membership.';
comment on column directory.changes.entity_id is 'The object''s id; of a membership <group_id>/<user_id>.';
comment on column directory.changes.operation is 'created: shown from now on. updated: shown otherwise. deleted: no longer shown.';
comment on column directory.changes.changed is 'Of an update, the columns that changed; else empty. A membership seen again changes nothing.';
comment on column directory.changes.before is 'The view''s row before, as JSON; null if it was not shown. Blanked when the object is forgotten.';
comment on column directory.changes.after is 'The view''s row after, as JSON; null if it is no longer shown. Blanked when the object is forgotten.';
comment on column directory.changes.event_id is 'The event that caused it; of what went or came along with another object, that object''s. Null: erased here.';
comment on column directory.changes.source is 'The way that event came: webhook, events_api or sweep; erase: a person was forgotten.';
