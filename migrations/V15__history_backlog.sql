-- The end of a large directory is a matter of one row: its own. What its end takes along is shown no more from the commit
-- of that row on; the history of it is written afterwards, in parts. Before, all of that was one transaction, in which
-- whoever wrote history waited: everybody else's removals too.
--
-- While a directory is in dsync.history_backlog, its users, groups and memberships are in the tables as they were last
-- shown, but for those in dsync.history_told_early. Whoever changes one has that seen to first (dsync.write_history_early):
-- of a user, history is written with that of all their memberships; of a group, its own, and it is noted whether it was
-- shown, by which its memberships are judged in their turn: they may be many. So what history says is what was shown, row
-- by row, whenever it is written. Its rows have the moment at which they were shown no more (recorded_at), and numbers by
-- which whoever polls does not miss them.

create table dsync.history_backlog (
    directory_id text collate "C" primary key,
    seen_after timestamptz not null,
    recorded_at timestamptz not null,
    occurred_at timestamptz not null,
    event_id text collate "C" not null,
    source text collate "C" not null,
    entity text not null default 'user' check (entity in ('user', 'group', 'membership')),
    after_id text collate "C" not null default '',
    after_user_id text collate "C" not null default ''
);
comment on table dsync.history_backlog is
    'Directories that ended, and of which it is still to be written into dsync.changes what they took along: users, then groups, then memberships, each in the order of their keys.';
comment on column dsync.history_backlog.seen_after is 'What the directory held was shown if it was seen after this.';
comment on column dsync.history_backlog.recorded_at is 'When that ended.';
comment on column dsync.history_backlog.event_id is 'The event by which it ended.';
comment on column dsync.history_backlog.entity is 'What is being written; all before it is.';
comment on column dsync.history_backlog.after_id is 'The last of them that is written; of memberships, its group.';
comment on column dsync.history_backlog.after_user_id is 'Of memberships, its user.';

create table dsync.history_told_early (
    directory_id text collate "C" not null,
    entity text not null check (entity in ('user', 'group')),
    id text collate "C" not null,
    was_shown boolean,
    gone_at timestamptz,
    primary key (directory_id, entity, id)
);
comment on table dsync.history_told_early is
    'Users of directories in dsync.history_backlog of which nothing is left to be written, of their memberships neither; groups of which only that of their memberships is.';
comment on column dsync.history_told_early.was_shown is 'Of a group: whether it was shown when its directory ended.';
comment on column dsync.history_told_early.gone_at is 'Of a group: when it was last gone before.';

alter table dsync.history_backlog enable row level security;
alter table dsync.history_told_early enable row level security;

-- Whether a directory holds more than some rows, live or not.
create function dsync.holds_more_than(directory text, bound bigint) returns boolean
language plpgsql stable set search_path = pg_catalog set enable_seqscan = off as $$
declare
    users bigint := (
        select count(*) from (select from dsync.users as u where u.directory_id = directory limit bound + 1) as u
    );
begin
    return users > bound or users + (
        select count(*) from (select from dsync.memberships as m where m.directory_id = directory limit bound + 1) as m
    ) > bound;
end
$$;

-- Begins a transaction that writes into the projection: as dsync.enter, which stays for programs that do not know of the
-- backlog. Who calls this one calls dsync.write_history_early before it changes what a directory in the backlog holds.
create function dsync.entering(directories text[], people text[], out erased text[], out has_backlog boolean)
language plpgsql volatile as $$
begin
    -- Settings of the connection would get lost in a pooler between. What goes along with a large group, or comes back with a
    -- directory, has its history at once: that takes longer than other statements may.
    perform
        set_config('search_path', 'dsync, pg_temp', true), set_config('statement_timeout', '15min', true),
        set_config('dsync.may_defer', 'on', true);
    perform dsync.lock_directories(entering.directories);
    erased := array(select e.user_id from dsync.erased as e where e.user_id = any(entering.people));
    -- Before the lock that history takes with the first change: a directory that comes back has its backlog written after.
    perform from dsync.history_backlog as b where b.directory_id = any(entering.directories)
    order by b.directory_id for update;
    has_backlog := exists (select from dsync.history_backlog);
end
$$;
comment on function dsync.entering(text[], text[]) is
    'Begins a transaction that writes into the projection: takes the locks of directories and answers which people are erased, and whether some directory''s history is still to be written.';

-- The locks of a writer. The one that erasures and rebuilds hold alone comes first: whoever holds directories' locks
-- already has it. Those of directories always in the same order, so that writers wait for each other in a line and not in
-- a ring; and out of 1,024, so that a batch of many directories cannot exhaust the lock table.
create function dsync.lock_directories(directories text[]) returns void
language plpgsql volatile as $$
begin
    perform pg_advisory_xact_lock_shared(hashtext('dsync erasures'), 0);
    perform pg_advisory_xact_lock(hashtext('dsync directories'), b.bucket)
    from (
        select distinct hashtext(x.id) & 1023 as bucket from unnest(directories) as x (id) order by bucket
    ) as b;
end
$$;

-- For programs from before the backlog: none is made for them, and what is in it of directories they mean is written.
create or replace function dsync.enter(directories text[], people text[]) returns setof text
language plpgsql volatile as $$
begin
    perform set_config('search_path', 'dsync, pg_temp', true);
    perform dsync.lock_directories(enter.directories);
    perform dsync.write_backlog(b.directory_id) from dsync.history_backlog as b
    where b.directory_id = any(enter.directories)
        or b.directory_id in (select u.directory_id from dsync.users as u where u.id = any(enter.people));
    return query select e.user_id from dsync.erased as e where e.user_id = any(enter.people);
end
$$;

-- The functions that write history of directories (V10), which may now leave for later what a directory takes along; and
-- the one that writes it then. As in V10 the former are made three times from one text, in which
--   {rows}    pairs old (o) and new (n) rows,
--   {any}     is a transition table that is there,
--   {o}, {n}, {u}, {g}, {m} are rows as the views show them, as JSON: a directory before and after, a user, a group, a
--             membership,
--   {changed} names the columns of the view that differ.
-- `offset 0` keeps the planner from turning a look-up by key into a join of its own making.
do $migration$
declare
    images constant jsonb := $${
        "o": "@.id, @.organization_id, @.name, @.type, @.state, @.external_key, @.created_at, @.updated_at, @.id as directory_id",
        "n": "@.id, @.organization_id, @.name, @.type, @.state, @.external_key, @.created_at, @.updated_at, @.id as directory_id",
        "u": "@.id, @.directory_id, @.organization_id, @.idp_id, @.email, @.username, @.first_name, @.last_name, @.name, @.job_title, @.state, @.role, @.roles, @.custom_attributes, @.raw_attributes, @.created_at, @.updated_at, coalesce(@.state = 'active', false) as active",
        "g": "@.id, @.directory_id, @.organization_id, @.idp_id, @.name, @.raw_attributes, @.created_at, @.updated_at",
        "m": "@.group_id, @.user_id, @.directory_id, @.organization_id, @.seen_at"
    }$$;
    directory_columns constant text[] := array[
        'id', 'organization_id', 'name', 'type', 'state', 'external_key', 'created_at', 'updated_at'
    ];

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

    -- One row for each change; two for an object that moves to another organization, which leaves the one and enters the
    -- other: each tenant is told what it sees, and nothing of the other's.
    insertion constant text := $$
        insert into dsync.changes (
            change_id, recorded_at, occurred_at, organization_id, directory_id, entity, entity_id, operation, changed,
            before, after, event_id, source
        )
        select
            nextval('dsync.change_ids'), stamp, nullif(x.at, '-infinity'),
            case x.operation when 'deleted' then x.o_organization_id else x.n_organization_id end,
            x.directory_id, x.entity, x.entity_id, x.operation,
            case x.operation when 'updated' then x.changed else '{}' end,
            case when x.operation <> 'created' then x.before end,
            case when x.operation <> 'deleted' then x.after end,
            nullif(x.event, ''), dsync.source_name(x.source)
        from (
            select
                x.*,
                case
                    when x.after is null or (x.moves and s.step = 1) then 'deleted'
                    when x.before is null or x.moves then 'created'
                    else 'updated'
                end as operation
            from (
                select
                    x.*,
                    x.before is not null and x.after is not null
                    and x.o_organization_id is distinct from x.n_organization_id as moves
                from x
            ) as x
            join (values (1), (2)) as s (step) on s.step = 1 or x.moves
            -- Null and JSON's null are two values of a column and look the same.
            where x.before is null or x.after is null or x.moves or x.changed <> '{}'
            order by x.place, x.entity_id, s.step
        ) as x;
        get diagnostics written = row_count;
        if written > 0 then
            perform set_config('dsync.last_change', currval('dsync.change_ids')::text, true);
        end if;$$;

    -- Directories: themselves, and all that comes and goes with them, unless that is much and goes: then it is left for
    -- later. What a directory holds is shown if it was seen after the directory's limit: when it was last gone, or never
    -- while it is gone, or always while it is unknown.
    directory constant text := $$
        for moved in
            select
                coalesce(n.id, o.id) as id, c.event, c.source, c.at,
                n.id is not null and o.organization_id is not distinct from n.organization_id as stays,
                case when o.id is null then '-infinity' when o.seen_at > o.gone_at then o.gone_at else 'infinity' end
                    as o_limit,
                case when n.id is null then '-infinity' when n.seen_at > n.gone_at then n.gone_at else 'infinity' end
                    as n_limit
            from {rows} cross join lateral (select n.*) as d {cause}
            order by 1
        loop
            continue when moved.stays and moved.o_limit = moved.n_limit;
            -- What went along the last time was shown last as it is now: it is told before anything else becomes of it.
            perform dsync.write_backlog(moved.id);
            if moved.stays and moved.n_limit = 'infinity' and current_setting('dsync.may_defer', true) = 'on'
                and dsync.holds_more_than(
                    moved.id, coalesce(nullif(current_setting('dsync.deferred_above', true), ''), '1000')::bigint
                )
            then
                insert into dsync.history_backlog (directory_id, seen_after, recorded_at, occurred_at, event_id, source)
                values (moved.id, moved.o_limit, stamp, moved.at, moved.event, moved.source);
                deferred := deferred || moved.id;
            end if;
        end loop;
        with moved as materialized (
            select
                coalesce(n.id, o.id) as id, c.event, c.source, c.at, o.organization_id as o_organization_id,
                n.organization_id as n_organization_id,
                case when o.seen_at > o.gone_at then {o} end as before,
                case when n.seen_at > n.gone_at then {n} end as after,
                {changed} as changed,
                case when o.id is null then '-infinity' when o.seen_at > o.gone_at then o.gone_at else 'infinity' end
                    as o_limit,
                case when n.id is null then '-infinity' when n.seen_at > n.gone_at then n.gone_at else 'infinity' end
                    as n_limit
            from {rows} cross join lateral (select n.*) as d {cause}
        ), x as materialized (
            select
                1 as place, v.id as entity_id, v.id as directory_id, 'directory' as entity, v.event, v.source, v.at,
                v.o_organization_id, v.n_organization_id, v.before, v.after, v.changed
            from moved as v
            where v.before is not null or v.after is not null
            union all
            select
                2, u.id, v.id, 'user', v.event, v.source, v.at, u.organization_id, u.organization_id,
                case when u.seen_at > v.o_limit then {u} end,
                case when u.seen_at > v.n_limit then {u} end,
                null
            from moved as v
            cross join lateral (
                select u.* from dsync.users as u where u.directory_id = v.id and u.seen_at > u.gone_at offset 0
            ) as u
            where v.id <> all (deferred) and v.o_limit <> v.n_limit and (u.seen_at > v.o_limit) <> (u.seen_at > v.n_limit)
            union all
            select
                3, g.id, v.id, 'group', v.event, v.source, v.at, g.organization_id, g.organization_id,
                case when g.seen_at > v.o_limit then {g} end,
                case when g.seen_at > v.n_limit then {g} end,
                null
            from moved as v
            cross join lateral (
                select g.* from dsync.groups as g where g.directory_id = v.id and g.seen_at > g.gone_at offset 0
            ) as g
            where v.id <> all (deferred) and v.o_limit <> v.n_limit and (g.seen_at > v.o_limit) <> (g.seen_at > v.n_limit)
            union all
            select
                4, m.group_id || '/' || m.user_id, v.id, 'membership', v.event, v.source, v.at, m.organization_id,
                m.organization_id,
                case when l.seen_at > v.o_limit then {m} end,
                case when l.seen_at > v.n_limit then {m} end,
                null
            from moved as v
            cross join lateral (
                select m.* from dsync.memberships as m where m.directory_id = v.id and m.seen_at > m.gone_at offset 0
            ) as m
            cross join lateral (
                select u.directory_id, u.seen_at, u.gone_at from dsync.users as u where u.id = m.user_id offset 0
            ) as u
            cross join lateral (
                select g.directory_id, g.seen_at, g.gone_at from dsync.groups as g where g.id = m.group_id offset 0
            ) as g
            cross join lateral (select least(m.seen_at, u.seen_at, g.seen_at) as seen_at) as l
            where v.id <> all (deferred) and v.o_limit <> v.n_limit and (l.seen_at > v.o_limit) <> (l.seen_at > v.n_limit)
                and u.directory_id = v.id and least(m.seen_at, u.seen_at) > u.gone_at
                and g.directory_id = v.id and least(m.seen_at, g.seen_at) > g.gone_at
        ) {insertion}$$;


    -- What the directory of a backlog `b` took along, of these rows: `users`, `groups`, and memberships of `of_groups`
    -- and `of_users`, side by side.
    writing constant text := $$
        create function dsync.write_history(
            b dsync.history_backlog, users text[], groups text[], of_groups text[], of_users text[]
        ) returns void language plpgsql volatile
        set search_path = pg_catalog set timezone = 'UTC' set jit = off
        set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
        as $function$
        declare
            written bigint;
        begin
            -- Not for the moment it answers: for the lock under which changes are numbered.
            perform dsync.recording();
            insert into dsync.changes (
                change_id, recorded_at, occurred_at, organization_id, directory_id, entity, entity_id, operation, before,
                event_id, source
            )
            select
                nextval('dsync.change_ids'), b.recorded_at, nullif(b.occurred_at, '-infinity'), x.organization_id,
                b.directory_id, x.entity, x.entity_id, 'deleted', x.shown, nullif(b.event_id, ''),
                dsync.source_name(b.source)
            from (
                select 2 as place, 'user' as entity, u.id as entity_id, u.organization_id, {u} as shown
                from unnest(users) as t (id)
                cross join lateral (
                    select u.* from dsync.users as u
                    where u.id = t.id and u.directory_id = b.directory_id and u.seen_at > greatest(u.gone_at, b.seen_after)
                    offset 0
                ) as u
                where not exists (
                    select from dsync.history_told_early as e
                    where e.directory_id = b.directory_id and e.entity = 'user' and e.id = u.id offset 0
                )
                union all
                select 3, 'group', g.id, g.organization_id, {g}
                from unnest(groups) as t (id)
                cross join lateral (
                    select g.* from dsync.groups as g
                    where g.id = t.id and g.directory_id = b.directory_id and g.seen_at > greatest(g.gone_at, b.seen_after)
                    offset 0
                ) as g
                where not exists (
                    select from dsync.history_told_early as e
                    where e.directory_id = b.directory_id and e.entity = 'group' and e.id = g.id offset 0
                )
                union all
                select 4, 'membership', m.group_id || '/' || m.user_id, m.organization_id, {m}
                from unnest(of_groups, of_users) as t (group_id, user_id)
                cross join lateral (
                    select m.* from dsync.memberships as m
                    where m.group_id = t.group_id and m.user_id = t.user_id and m.directory_id = b.directory_id
                        and m.seen_at > greatest(m.gone_at, b.seen_after)
                    offset 0
                ) as m
                cross join lateral (
                    select u.gone_at from dsync.users as u
                    where u.id = m.user_id and u.directory_id = b.directory_id
                        and u.seen_at > greatest(u.gone_at, b.seen_after)
                    offset 0
                ) as u
                left join lateral (
                    select g.gone_at from dsync.groups as g
                    where g.id = m.group_id and g.directory_id = b.directory_id
                        and g.seen_at > greatest(g.gone_at, b.seen_after)
                    offset 0
                ) as g on true
                left join lateral (
                    select e.was_shown, e.gone_at from dsync.history_told_early as e
                    where e.directory_id = b.directory_id and e.entity = 'group' and e.id = m.group_id
                    offset 0
                ) as e on true
                where m.seen_at > u.gone_at
                    and case
                        when e.was_shown is null then m.seen_at > g.gone_at else e.was_shown and m.seen_at > e.gone_at
                    end
                    and not exists (
                        select from dsync.history_told_early as e
                        where e.directory_id = b.directory_id and e.entity = 'user' and e.id = m.user_id offset 0
                    )
                order by 1, 3
            ) as x;
            get diagnostics written = row_count;
            if written > 0 then
                perform set_config('dsync.last_change', currval('dsync.change_ids')::text, true);
            end if;
        end
        $function$
    $$;

    wrapper constant text := $$
        create or replace function dsync.{function}() returns trigger language plpgsql
        set search_path = pg_catalog set timezone = 'UTC' set jit = off
        set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
        as $function$
        declare
            stamp timestamptz;
            written bigint;
            moved record;
            deferred text[] := '{}';
        begin
            -- A rebuild makes the same tables again: that is no news to readers.
            if current_setting('dsync.history', true) = 'off' or not exists (select from {any}) then
                return null;
            end if;
            stamp := dsync.recording();
            {body}
            return null;
        end
        $function$
    $$;

    body text;
    image record;
    happening record;
begin
    for happening in
        select * from (values
            ('', '', '', writing),
            ('inserted', 'new_rows', 'new_rows as n left join (select * from new_rows limit 0) as o on o.id = n.id', wrapper),
            ('updated', 'new_rows', 'old_rows as o full join new_rows as n on o.id = n.id', wrapper),
            ('deleted', 'old_rows', 'old_rows as o left join (select * from old_rows limit 0) as n on o.id = n.id', wrapper)
        ) as h (name, any_rows, rows, statement)
    loop
        body := replace(replace(happening.statement, '{body}', directory), '{insertion}', insertion);
        body := replace(replace(body, '{cause}', cause), '{rows}', happening.rows);
        body := replace(replace(body, '{function}', 'directories_' || happening.name), '{any}', happening.any_rows);
        body := replace(body, '{changed}', (
            select 'array_remove(array[' || string_agg(
                format($$case when o.%1$s is distinct from n.%1$s then %2$L end$$, c, c), ', ' order by c collate "C"
            ) || '], null)'
            from unnest(directory_columns) as c
        ));
        for image in select * from jsonb_each_text(images) as i (name, columns) loop
            body := replace(
                body, '{' || image.name || '}',
                format('(select to_jsonb(r) from (select %s) as r)', replace(image.columns, '@', image.name))
            );
        end loop;
        execute body;
    end loop;
end
$migration$;

-- Writes what is to be written of these users, of their memberships, and of these groups, before they change. Each comes with the
-- directory in which it, or a membership of it, is about to be written, which need not be the one in which it is. From then
-- on it does not matter to history what becomes of them.
create function dsync.write_history_early(people text[], people_in text[], groups text[], groups_in text[]) returns void
language plpgsql volatile set search_path = pg_catalog set enable_seqscan = off as $$
declare
    b dsync.history_backlog;
    new_users text[];
    new_groups text[];
    pairs record;
begin
    for b in
        select h.* from dsync.history_backlog as h
        where h.directory_id = any(people_in)
            or h.directory_id = any(groups_in)
            or h.directory_id in (select u.directory_id from dsync.users as u where u.id = any(people))
            or h.directory_id in (select g.directory_id from dsync.groups as g where g.id = any(groups))
        order by h.directory_id for update
    loop
        new_users := array(
            select distinct x.id from unnest(people, people_in) as x (id, directory_id)
            where (
                    x.directory_id = b.directory_id or exists (
                        select from dsync.users as u where u.id = x.id and u.directory_id = b.directory_id offset 0
                    )
                )
                and not exists (
                    select from dsync.history_told_early as e
                    where e.directory_id = b.directory_id and e.entity = 'user' and e.id = x.id collate "C" offset 0
                )
        );
        new_groups := array(
            select distinct x.id from unnest(groups, groups_in) as x (id, directory_id)
            where (
                    x.directory_id = b.directory_id or exists (
                        select from dsync.groups as g where g.id = x.id and g.directory_id = b.directory_id offset 0
                    )
                )
                and not exists (
                    select from dsync.history_told_early as e
                    where e.directory_id = b.directory_id and e.entity = 'group' and e.id = x.id collate "C" offset 0
                )
        );
        select array_agg(m.group_id) as of_groups, array_agg(m.user_id) as of_users into pairs
        from dsync.memberships as m
        where m.user_id = any(new_users)
            and (b.entity <> 'membership' or (m.group_id, m.user_id) > (b.after_id, b.after_user_id));
        perform dsync.write_history(
            b,
            array(select x.id from unnest(new_users) as x (id) where b.entity = 'user' and x.id collate "C" > b.after_id),
            array(
                select x.id from unnest(new_groups) as x (id)
                where b.entity = 'user' or (b.entity = 'group' and x.id collate "C" > b.after_id)
            ),
            pairs.of_groups, pairs.of_users
        );
        insert into dsync.history_told_early (directory_id, entity, id)
        select b.directory_id, 'user', x.id from unnest(new_users) as x (id);
        insert into dsync.history_told_early (directory_id, entity, id, was_shown, gone_at)
        select b.directory_id, 'group', x.id, g.id is not null, coalesce(g.gone_at, '-infinity')
        from unnest(new_groups) as x (id)
        left join dsync.groups as g
            on g.id = x.id and g.directory_id = b.directory_id and g.seen_at > greatest(g.gone_at, b.seen_after);
    end loop;
end
$$;
comment on function dsync.write_history_early(text[], text[], text[], text[]) is
    'Writes what is to be written of users and groups of directories in dsync.history_backlog, and of those users'' memberships, before they change.';

-- Writes all that is left to be written of a directory's end, if something is.
create function dsync.write_backlog(directory text) returns void
language plpgsql volatile set search_path = pg_catalog set enable_seqscan = off as $$
declare
    b dsync.history_backlog;
    pairs record;
begin
    select h.* into b from dsync.history_backlog as h where h.directory_id = directory for update;
    if not found then
        return;
    end if;
    perform dsync.write_history(
        b,
        array(
            select u.id from dsync.users as u
            where u.directory_id = directory and b.entity = 'user' and u.id > b.after_id collate "C"
        ),
        array(
            select g.id from dsync.groups as g
            where g.directory_id = directory
                and (b.entity = 'user' or (b.entity = 'group' and g.id > b.after_id collate "C"))
        ),
        null, null
    );
    -- Group by group: all of a large directory's memberships would be more than an array should hold.
    for pairs in
        select array_agg(m.group_id) as of_groups, array_agg(m.user_id) as of_users
        from dsync.memberships as m
        where m.directory_id = directory
            and (b.entity <> 'membership' or (m.group_id, m.user_id) > (b.after_id, b.after_user_id))
        group by m.group_id order by m.group_id
    loop
        perform dsync.write_history(b, null, null, pairs.of_groups, pairs.of_users);
    end loop;
    delete from dsync.history_told_early as e where e.directory_id = directory;
    delete from dsync.history_backlog as h where h.directory_id = directory;
end
$$;

-- Writes the next part of what a directory's end took along: rows of the entity that the backlog stands at, by their ids,
-- of memberships by group and user. The backlog then stands at (`entity`, `last_id`, `last_user_id`); at its end it is
-- none any more (`entity` null). Nothing is done, and false answered, if it is not that of the end at `ended_at`, or does
-- not stand at (`at_entity`, `at_id`, `at_user_id`), or if another writes a part now.
create function dsync.write_history_part(
    directory text, ended_at timestamptz, at_entity text, at_id text, at_user_id text, ids text[], user_ids text[],
    entity text, last_id text, last_user_id text
) returns boolean
language plpgsql volatile set search_path = pg_catalog as $$
declare
    b dsync.history_backlog;
begin
    if not pg_try_advisory_xact_lock(hashtext('dsync history backlog'), 0) then
        return false;
    end if;
    perform dsync.lock_directories(array[directory]);
    select h.* into b from dsync.history_backlog as h
    where h.directory_id = directory and h.recorded_at = ended_at
        and h.entity = at_entity and h.after_id = at_id and h.after_user_id = at_user_id
    for update;
    if not found then
        return false;
    end if;
    case at_entity
        when 'user' then perform dsync.write_history(b, ids, null, null, null);
        when 'group' then perform dsync.write_history(b, null, ids, null, null);
        else perform dsync.write_history(b, null, null, ids, user_ids);
    end case;
    if entity is null then
        delete from dsync.history_told_early as e where e.directory_id = directory;
        delete from dsync.history_backlog as h where h.directory_id = directory;
    else
        update dsync.history_backlog as h
        set entity = write_history_part.entity, after_id = last_id, after_user_id = last_user_id
        where h.directory_id = directory;
    end if;
    return true;
end
$$;

comment on column directory.changes.recorded_at is
    'When the views began to show it so; one moment for all of a transaction, and for what a directory took along with it, which may be written later: order by change_id.';

-- As in V5; and what a directory took along after that moment was shown then, even if history does not say so yet.
create or replace function directory.users_at(moment timestamptz) returns setof directory.users
language sql stable
begin atomic
    with since as (
        select distinct on (c.entity_id) c.entity_id, c.before
        from dsync.changes as c
        where c.entity = 'user' and c.recorded_at > dsync.kept(moment)
        order by c.entity_id, c.change_id
    )
    select u.* from directory.users as u
    where not exists (select from since as s where s.entity_id = u.id)
    union all
    select u.* from since as s cross join lateral jsonb_populate_record(null::directory.users, s.before) as u
    where s.before is not null
    union all
    select
        u.id, u.directory_id, u.organization_id, u.idp_id, u.email, u.username, u.first_name, u.last_name, u.name,
        u.job_title, u.state, coalesce(u.state = 'active', false), u.role, u.roles, u.custom_attributes, u.raw_attributes,
        u.created_at, u.updated_at
    from dsync.history_backlog as b
    join dsync.users as u on u.directory_id = b.directory_id
    where b.recorded_at > moment and u.seen_at > greatest(u.gone_at, b.seen_after)
        and not exists (select from since as s where s.entity_id = u.id)
        and not exists (
            select from dsync.history_told_early as e
            where e.directory_id = b.directory_id and e.entity = 'user' and e.id = u.id
        );
end;

create or replace function directory.groups_at(moment timestamptz) returns setof directory.groups
language sql stable
begin atomic
    with since as (
        select distinct on (c.entity_id) c.entity_id, c.before
        from dsync.changes as c
        where c.entity = 'group' and c.recorded_at > dsync.kept(moment)
        order by c.entity_id, c.change_id
    )
    select g.* from directory.groups as g
    where not exists (select from since as s where s.entity_id = g.id)
    union all
    select g.* from since as s cross join lateral jsonb_populate_record(null::directory.groups, s.before) as g
    where s.before is not null
    union all
    select
        g.id, g.directory_id, g.organization_id, g.idp_id, g.name, g.raw_attributes, g.created_at, g.updated_at
    from dsync.history_backlog as b
    join dsync.groups as g on g.directory_id = b.directory_id
    where b.recorded_at > moment and g.seen_at > greatest(g.gone_at, b.seen_after)
        and not exists (select from since as s where s.entity_id = g.id)
        and not exists (
            select from dsync.history_told_early as e
            where e.directory_id = b.directory_id and e.entity = 'group' and e.id = g.id
        );
end;

create or replace function directory.memberships_at(moment timestamptz) returns setof directory.memberships
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
    where s.before is not null
    union all
    select
        m.group_id, m.user_id, m.directory_id, m.organization_id, m.seen_at
    from dsync.history_backlog as b
    join dsync.memberships as m on m.directory_id = b.directory_id
    join dsync.users as u on u.id = m.user_id and u.directory_id = m.directory_id
    left join dsync.groups as g on g.id = m.group_id and g.directory_id = m.directory_id
    left join dsync.history_told_early as t
        on t.directory_id = b.directory_id and t.entity = 'group' and t.id = m.group_id
    where b.recorded_at > moment and m.seen_at > greatest(m.gone_at, u.gone_at, b.seen_after)
        and u.seen_at > greatest(u.gone_at, b.seen_after)
        and case
            when t.was_shown is null
                then m.seen_at > g.gone_at and g.seen_at > greatest(g.gone_at, b.seen_after)
            else t.was_shown and m.seen_at > t.gone_at
        end
        and not exists (select from since as s where s.entity_id = m.group_id || '/' || m.user_id)
        and not exists (
            select from dsync.history_told_early as e
            where e.directory_id = b.directory_id and e.entity = 'user' and e.id = m.user_id
        );
end;

-- As in V7; readers' functions look into the backlog, and see of it what they see of directories.
create or replace function dsync.grant_readers() returns text[]
language plpgsql set search_path = pg_catalog as $$
declare
    tenant constant text := '(select nullif(current_setting(''dsync.organization_id'', true), ''''))';
    own_directories constant text := format(
        '(select d.id from dsync.directories as d where d.organization_id = %s)', tenant
    );
    missing text[] := '{}';
    role text;
    name text;
begin
    perform pg_advisory_xact_lock(hashtext('dsync readers'), 0);
    foreach name in array array['dsync_reader', 'dsync_tenant'] loop
        if not exists (select from pg_roles as r where r.rolname = name) then
            begin
                execute format('create role %I nologin', name);
            exception
                when insufficient_privilege then missing := missing || format('create role %I nologin;', name);
                -- Another database of this server was faster.
                when duplicate_object or unique_violation then null;
            end;
        end if;
    end loop;
    for name in
        select c.relname from pg_class as c
        where c.relnamespace = 'dsync'::regnamespace and c.relkind in ('r', 'p') and not c.relrowsecurity
    loop
        execute format('alter table dsync.%I enable row level security', name);
    end loop;
    if missing <> '{}' then
        return missing;
    end if;

    foreach role in array array['dsync_reader', 'dsync_tenant'] loop
        if not has_schema_privilege(role, 'dsync', 'usage') or not has_schema_privilege(role, 'directory', 'usage') then
            execute format('grant usage on schema dsync, directory to %I', role);
            execute format('alter default privileges in schema directory grant select on tables to %I', role);
        end if;
        for name in
            select c.oid::regclass::text from pg_class as c
            where (c.relnamespace = 'directory'::regnamespace and c.relkind = 'v')
                or c.oid in ('dsync.granted_roles'::regclass, 'dsync.every_tenant'::regclass)
        loop
            if not has_table_privilege(role, name, 'select') then
                execute format('grant select on %s to %I', name, role);
            end if;
        end loop;
    end loop;

    foreach name in array array[
        'directories', 'users', 'groups', 'memberships', 'changes', 'history', 'directory_activity', 'sweeps',
        'held_deletions', 'role_versions', 'role_priorities', 'role_rules', 'every_tenant', 'history_backlog',
        'history_told_early'
    ] loop
        perform dsync.let_see('dsync_reader', name, 'true');
    end loop;

    foreach name in array array['users', 'groups', 'memberships', 'changes'] loop
        perform dsync.let_see('dsync_tenant', name, 'organization_id = ' || tenant);
    end loop;
    perform dsync.let_see('dsync_tenant', 'directories', format(
        'organization_id = %s or (organization_id is null and (
            exists (select from dsync.users as u where u.directory_id = directories.id)
            or exists (select from dsync.groups as g where g.directory_id = directories.id)
        ))',
        tenant
    ));
    foreach name in array array[
        'directory_activity', 'sweeps', 'held_deletions', 'history_backlog', 'history_told_early'
    ] loop
        perform dsync.let_see('dsync_tenant', name, 'directory_id in ' || own_directories);
    end loop;
    perform dsync.let_see('dsync_tenant', 'history', 'true');
    perform dsync.let_see('dsync_tenant', 'role_versions', 'true');
    -- A rule may name another's organization or group. One for all that names a group is seen if the group is.
    perform dsync.let_see('dsync_tenant', 'role_rules', format(
        'organization_id = %1$s or directory_id in %2$s
        or (organization_id is null and directory_id is null and (
            kind <> ''group''
            or exists (
                select from dsync.groups as g
                where role_rules.group_value
                    = case role_rules.group_by when ''id'' then g.id when ''name'' then g.name else g.idp_id end
            )
        ))',
        tenant, own_directories
    ));
    perform dsync.let_see('dsync_tenant', 'role_priorities', 'true');
    return '{}';
end
$$;

-- What only the programs do.
revoke execute on function
    dsync.entering(text[], text[]), dsync.lock_directories(text[]), dsync.holds_more_than(text, bigint),
    dsync.write_history(dsync.history_backlog, text[], text[], text[], text[]),
    dsync.write_history_early(text[], text[], text[], text[]), dsync.write_backlog(text),
    dsync.write_history_part(text, timestamptz, text, text, text, text[], text[], text, text, text)
from public;

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
