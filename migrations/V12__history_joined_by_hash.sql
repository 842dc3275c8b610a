-- The functions that write history of users, groups and memberships (V10), for less. Pairs of rows are joined by hash, not
-- by sorting both sides, and nothing is spilled to disk on the way; the directories that a statement concerns, and of
-- memberships the users and groups, are looked up once for the statement, not once for each row.
--
-- What history says is as before. The functions for directories stay those of V10.
--
-- A function is planned once for a session, maybe for one row in empty tables. So these may not choose: tables are read by
-- index, for the keys that the statement names (the arrays); what is joined by equality is joined by hash; and look-ups
-- that remain are laterals with `offset 0`, which nothing else can be made of. The same `offset 0` has the JSON images
-- made once for each row, without keeping them all.
--
-- As in V10 each function is made three times from one text, in which
--   {rows}    pairs old (o) and new (n) rows,
--   {any}     is a transition table that is there,
--   {o}, {n}  are the old and the new row as the view shows them, as JSON,
--   {differs} is whether they are shown differently, which is cheap to ask first: most writes of a membership's event
--             only note that its user and group were seen to look as they did,
--   {changed} names the columns of the view that differ.
do $migration$
declare
    user_columns constant text[] := array[
        'id', 'directory_id', 'organization_id', 'idp_id', 'email', 'username', 'first_name', 'last_name', 'name',
        'job_title', 'state', 'role', 'roles', 'custom_attributes', 'raw_attributes', 'created_at', 'updated_at'
    ];
    group_columns constant text[] := array[
        'id', 'directory_id', 'organization_id', 'idp_id', 'name', 'raw_attributes', 'created_at', 'updated_at'
    ];
    membership_columns constant text[] := array['group_id', 'user_id', 'directory_id', 'organization_id'];
    -- The view's columns that follow from others, and the one whose moving is no change.
    user_derived constant text := $$, coalesce(@.state = 'active', false) as active$$;
    group_derived constant text := '';
    membership_derived constant text := ', @.seen_at';
    json constant text := '(select to_jsonb(r) from (select {columns}) as r)';

    -- The directories that a statement concerns: few.
    directories constant text := $$
        select d.id, d.seen_at, d.gone_at, d.version_observed_at, d.version_event, d.version_source
        from dsync.directories as d where d.id = any(array({named}))$$;

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

    -- Users and groups: themselves, and the memberships that come and go with them.
    object constant text := $$
        with d as materialized ({directories}), x as not materialized (
            select
                1 as place, coalesce(n.id, o.id) as entity_id, coalesce(n.directory_id, o.directory_id) as directory_id,
                {entity} as entity, c.event, c.source, c.at, o.organization_id as o_organization_id,
                n.organization_id as n_organization_id,
                case when w.was then {o} end as before, case when w.becomes then {n} end as after,
                case when w.was and w.becomes then {changed} end as changed
            from {rows}
            left join d as od on od.id = o.directory_id
            left join d on d.id = n.directory_id {cause}
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
            offset 0
        ) {insertion}

        if is_moved then
        with d as materialized ({directories}), moved as materialized (
            select
                coalesce(n.id, o.id) as id, o.directory_id as o_directory_id, o.seen_at as o_seen_at,
                o.gone_at as o_gone_at, n.directory_id as n_directory_id, n.seen_at as n_seen_at,
                n.gone_at as n_gone_at, c.event, c.source, c.at
            from {rows}
            left join d on d.id = coalesce(n.directory_id, o.directory_id) {cause}
            where o.directory_id is distinct from n.directory_id
                or o.gone_at is distinct from n.gone_at
                or (o.seen_at > o.gone_at) is distinct from (n.seen_at > n.gone_at)
                or (o.seen_at > coalesce(d.gone_at, '-infinity'))
                    is distinct from (n.seen_at > coalesce(d.gone_at, '-infinity'))
        ), x as materialized (
            select
                1 as place, m.group_id || '/' || m.user_id as entity_id, m.directory_id, 'membership' as entity,
                v.event, v.source, v.at, m.organization_id as o_organization_id, m.organization_id as n_organization_id,
                case when w.was then {m} end as before, case when w.becomes then {m} end as after,
                null::text[] as changed
            from moved as v
            cross join lateral (
                select m.* from dsync.memberships as m where m.{mine} = v.id and m.seen_at > m.gone_at offset 0
            ) as m
            cross join lateral (
                select t.directory_id, t.seen_at, t.gone_at from {others} as t where t.id = m.{other} offset 0
            ) as t
            left join lateral (
                select d.id, d.seen_at, d.gone_at from dsync.directories as d where d.id = m.directory_id offset 0
            ) as d on true
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
            where t.directory_id = m.directory_id and w.was is distinct from w.becomes
        ) {insertion}
        end if;$$;

    -- Most updates only note that an object was seen to look as it did, and most of the others move nobody. That is asked
    -- first, by a plan far smaller than those of the statements that say what changed: for one event alone, setting those
    -- up is most of what history costs. Both answers may be true for nothing, never false for something.
    asked constant text := $$
        select
            bool_or({differs}),
            bool_or(
                o.directory_id is distinct from n.directory_id
                or o.gone_at is distinct from n.gone_at
                or (
                    o.seen_at is distinct from n.seen_at
                    and (
                        (o.seen_at > o.gone_at) is distinct from (n.seen_at > n.gone_at)
                        or (
                            select exists (
                                select from dsync.directories as d
                                where d.id = any(array({named})) and d.gone_at > '-infinity'
                            )
                        )
                    )
                )
            )
        into is_shown, is_moved
        from {rows};
        if not (is_shown or is_moved) then
            return null;
        end if;$$;

    -- Memberships. That one was only seen again (seen_at moved) is no change: a sweep would write one for each.
    membership constant text := $$
        with d as materialized ({directories}), u as materialized (
            select u.id, u.directory_id, u.seen_at, u.gone_at from dsync.users as u
            where u.id = any(array(select r.user_id from {any} as r))
        ), g as materialized (
            select g.id, g.directory_id, g.seen_at, g.gone_at from dsync.groups as g
            where g.id = any(array(select r.group_id from {any} as r))
        ), x as not materialized (
            select
                1 as place, coalesce(n.group_id, o.group_id) || '/' || coalesce(n.user_id, o.user_id) as entity_id,
                coalesce(n.directory_id, o.directory_id) as directory_id, 'membership' as entity,
                c.event, c.source, c.at, o.organization_id as o_organization_id, n.organization_id as n_organization_id,
                case when w.was then {o} end as before, case when w.becomes then {n} end as after,
                case when w.was and w.becomes then {changed} end as changed
            from {rows}
            left join u on u.id = coalesce(n.user_id, o.user_id)
            left join g on g.id = coalesce(n.group_id, o.group_id)
            left join d as od on od.id = o.directory_id
            left join d on d.id = n.directory_id
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
            offset 0
        ) {insertion}$$;

    wrapper constant text := $$
        create or replace function dsync.{function}() returns trigger language plpgsql
        set search_path = pg_catalog set timezone = 'UTC' set jit = off set work_mem = '32MB'
        set enable_seqscan = off set enable_nestloop = off set enable_mergejoin = off set enable_hashjoin = on
        as $function$
        declare
            stamp timestamptz;
            written bigint;
            is_shown boolean := true;
            is_moved boolean := true;
        begin
            -- A rebuild makes the same tables again: that is no news to readers.
            if current_setting('dsync.history', true) = 'off' or not exists (select from {any}) then
                return null;
            end if;
            {body}
            return null;
        end
        $function$
    $$;
    body text;
    statement text;
    target record;
    happening record;
begin
    for target in
        select
            t.*,
            (select string_agg('@.' || c, ', ') from unnest(t.columns) as c) as listed,
            (
                -- Of JSON, null is a value too, and looks as no value does.
                select 'array_remove(array[' || string_agg(
                    format(
                        case when c like '%\_attributes' then $$case when coalesce(o.%1$s, 'null') is distinct from coalesce(n.%1$s, 'null') then %2$L end$$
                            when c = 'active' then $$case when coalesce(o.state = 'active', false) <> coalesce(n.state = 'active', false) then %2$L end$$
                            else $$case when o.%1$s is distinct from n.%1$s then %2$L end$$ end,
                        c, c
                    ),
                    ', ' order by c collate "C"
                ) || '], null)'
                from unnest(t.columns || case t.name when 'users' then array['active'] else '{}'::text[] end) as c
            ) as changed
        from (
            values
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
                ('inserted', 'new_rows', 'select r.directory_id from new_rows as r',
                    'new_rows as n left join (select * from new_rows limit 0) as o on {key}'),
                ('updated', 'new_rows',
                    'select r.directory_id from old_rows as r union select r.directory_id from new_rows as r',
                    'old_rows as o full join new_rows as n on {key}'),
                ('deleted', 'old_rows', 'select r.directory_id from old_rows as r',
                    'old_rows as o left join (select * from old_rows limit 0) as n on {key}')
            ) as h (name, any_rows, named, rows)
        loop
            body := case when target.body = object and happening.name = 'updated' then asked else '' end
                || ' stamp := dsync.recording(); ' || target.body;
            body := replace(replace(body, '{insertion}', insertion), '{cause}', cause);
            body := replace(replace(body, '{directories}', directories), '{named}', happening.named);
            body := replace(body, '{any}', happening.any_rows);
            body := replace(body, '{rows}', replace(happening.rows, '{key}', target.key));
            body := replace(body, '{entity}', quote_literal(target.entity));
            body := replace(body, '{changed}', target.changed);
            body := replace(body, '{differs}', format(
                'row(%s) is distinct from row(%s)',
                replace(target.listed, '@', 'o'), replace(target.listed, '@', 'n')
            ));
            body := replace(
                body, '{o}', replace(replace(json, '{columns}', target.listed || target.derived), '@', 'o')
            );
            body := replace(
                body, '{n}', replace(replace(json, '{columns}', target.listed || target.derived), '@', 'n')
            );
            body := replace(body, '{m}', replace(replace(
                json, '{columns}', '@.' || array_to_string(membership_columns, ', @.') || membership_derived
            ), '@', 'm'));
            body := replace(body, '{mine}', coalesce(target.mine, ''));
            body := replace(body, '{others}', coalesce(target.others, ''));
            body := replace(body, '{other}', coalesce(target.other, ''));
            statement := replace(wrapper, '{body}', body);
            statement := replace(statement, '{function}', target.name || '_' || happening.name);
            statement := replace(statement, '{any}', happening.any_rows);
            execute statement;
        end loop;
    end loop;
end
$migration$;
