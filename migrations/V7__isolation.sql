-- Who may read what. dsync_reader reads schema directory, all tenants; dsync_tenant the same, but only the organization
-- in dsync.organization_id. The views run with the reader's own rights, so both roles may read the tables that views
-- stand on, and row-level security on those tables is what confines a tenant: in views, in functions, and past them.
-- Every table of schema dsync has row-level security, and what has no policy shows nothing. The tables' owner, which
-- the programs connect as, is not bound by it.

-- Functions that are not leakproof are no index's business under row-level security, and lower() is none. So the
-- address is kept folded, and found by plain equality. Hash, as ever: it may be longer than a b-tree holds.
alter table dsync.users add column email_key text generated always as (lower(email)) stored;
create index users_email_key on dsync.users using hash (email_key);
comment on column dsync.users.email_key is 'email in lower case, for finding it under row-level security.';

create table dsync.every_tenant (only_row boolean primary key default true check (only_row));
insert into dsync.every_tenant default values;
comment on table dsync.every_tenant is 'One row, seen only by who may see all tenants.';

-- A tenant sees a directory that belongs to no organization yet if it holds the tenant's own users or groups: whether
-- they are live depends on it. But it is none of its directories.
create or replace view directory.directories with (security_invoker = true) as
select
    d.id,
    d.organization_id,
    d.id as directory_id,
    d.name,
    d.type,
    d.state,
    d.external_key,
    d.created_at,
    d.updated_at
from dsync.directories as d
where d.seen_at > d.gone_at
    and (d.organization_id is not null or exists (select from dsync.every_tenant));

-- One policy and one grant, where they are missing. What is there is left alone: a program calls this at every start,
-- and making a policy locks readers out. (A migration that changes a policy drops the old one first.)
create function dsync.let_see(role text, target text, condition text) returns void
language plpgsql set search_path = pg_catalog as $$
begin
    if not exists (
        select from pg_policies as p
        where p.schemaname = 'dsync' and p.tablename = target and p.policyname = role
    ) then
        execute format('create policy %I on dsync.%I for select to %I using (%s)', role, target, role, condition);
    end if;
    if not has_table_privilege(role, format('dsync.%I', target), 'select') then
        execute format('grant select on dsync.%I to %I', target, role);
    end if;
end
$$;

-- Makes the two roles if they are missing and this role may, and gives them their rights, again as often as called.
-- Returns the statements that an administrator must run first: none if all is done.
--
-- The setting stands in a sub-select, so that it is read once a query and not once a row. After `set local` it is an
-- empty text, not null.
create function dsync.grant_readers() returns text[]
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
        'held_deletions', 'role_versions', 'role_priorities', 'role_rules', 'every_tenant'
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
    foreach name in array array['directory_activity', 'sweeps', 'held_deletions'] loop
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
comment on function dsync.grant_readers() is
    'Gives dsync_reader and dsync_tenant their rights. Returns what an administrator must run before it can.';

-- Is this person provisioned and active, and what may they do? One row, whatever the answer. Looks for the address or
-- the identity provider's id among the live users of the organization; of several, an active one, then the newest.
create function directory.login(organization_id text, email_or_idp_id text) returns table (
    provisioned boolean, active boolean, user_id text, directory_id text, directory_state text, role text, roles text[],
    group_ids text[], group_names text[], matches bigint
)
language sql stable rows 1
begin atomic
    select
        u.id is not null, coalesce(u.active, false), u.id, u.directory_id, u.directory_state, r.role,
        coalesce(r.roles, '{}'), coalesce(g.ids, '{}'), coalesce(g.names, '{}'), coalesce(u.matches, 0)
    from (select) as one
    left join lateral (
        select
            u.id, u.directory_id, coalesce(u.state = 'active', false) as active, d.state as directory_state,
            count(*) over () as matches
        from dsync.users as u
        left join dsync.directories as d on d.id = u.directory_id
        where (u.email_key = lower(login.email_or_idp_id) or u.idp_id = login.email_or_idp_id)
            and u.organization_id = login.organization_id
            and u.seen_at > u.gone_at
            and (d.id is null or (d.seen_at > d.gone_at and u.seen_at > d.gone_at))
        order by 3 desc, u.created_at desc nulls last, u.id
        limit 1
    ) as u on true
    left join lateral (
        select
            array_agg(r.role order by r.priority desc, r.rank, r.role) as roles,
            (array_agg(r.role order by r.priority desc, r.rank, r.role))[1] as role
        from dsync.granted_roles as r
        where r.user_id = u.id and u.active and r.version = (select max(v.version) from dsync.role_versions as v)
    ) as r on true
    left join lateral (
        select array_agg(g.id order by g.id) as ids, array_agg(g.name order by g.id) as names
        from dsync.memberships as m
        join dsync.groups as g on g.id = m.group_id and g.directory_id = m.directory_id
        join dsync.users as w on w.id = m.user_id and w.directory_id = m.directory_id
        left join dsync.directories as d on d.id = m.directory_id
        where m.user_id = u.id
            and m.seen_at > greatest(m.gone_at, w.gone_at, g.gone_at)
            and w.seen_at > w.gone_at
            and g.seen_at > g.gone_at
            and (d.id is null or (d.seen_at > d.gone_at and least(m.seen_at, w.seen_at, g.seen_at) > d.gone_at))
    ) as g on true;
end;
comment on function directory.login(text, text) is
    'For a person who just signed in to an organization: whether they are provisioned and active, who they are, their roles (strongest first) and groups. Always one row. Let in only who is active.';

-- Why does this person have each of their roles, since when, by which event? A role is had while several things hold at
-- once (the user is active; is in the group; the rule stands; …): since when is the latest of them, and why is that one.
create function directory.explain(user_id text) returns table (
    role text, source text, priority integer, group_id text, group_name text, rule jsonb, since timestamptz,
    because text, change_id bigint, event_id text, event_source text, occurred_at timestamptz
)
language sql stable
begin atomic
    select
        g.role, g.source, g.priority, g.group_id, n.name,
        case when r.rule is not null then jsonb_strip_nulls(jsonb_build_object(
            'kind', r.kind, 'group_' || coalesce(r.group_by, 'id'), r.group_value, 'path', r.path, 'value', r.value,
            'organization', r.organization_id, 'directory', r.directory_id, 'since', r.since
        )) end,
        w.at, w.because, w.change_id, w.event_id, w.event_source, w.occurred_at
    from dsync.granted_roles as g
    left join dsync.role_rules as r on r.version = g.version and r.rule = g.rule
    left join dsync.groups as n on n.id = g.group_id
    left join lateral (
        select * from (
            (
                select
                    c.recorded_at as at, 'the user became active' as because, c.change_id, c.event_id,
                    c.source as event_source, c.occurred_at
                from dsync.changes as c
                where c.entity_id = g.user_id and c.entity = 'user'
                    and (c.after ->> 'active')::boolean
                    and not coalesce((c.before ->> 'active')::boolean, false)
                order by c.change_id desc limit 1
            )
            union all
            (
                select c.recorded_at, 'WorkOS gave the role', c.change_id, c.event_id, c.source, c.occurred_at
                from dsync.changes as c
                where g.source = 'workos' and c.entity_id = g.user_id and c.entity = 'user'
                    and (c.after -> 'roles' ? g.role or c.after ->> 'role' = g.role)
                    and not coalesce(c.before -> 'roles' ? g.role or c.before ->> 'role' = g.role, false)
                order by c.change_id desc limit 1
            )
            union all
            (
                select c.recorded_at, 'the user joined the group', c.change_id, c.event_id, c.source, c.occurred_at
                from dsync.changes as c
                where c.entity_id = g.group_id || '/' || g.user_id and c.entity = 'membership'
                    and c.operation = 'created'
                order by c.change_id desc limit 1
            )
            union all
            (
                select
                    c.recorded_at, 'the group was called so', c.change_id, c.event_id, c.source, c.occurred_at
                from dsync.changes as c
                where r.group_by in ('name', 'idp_id') and c.entity_id = g.group_id and c.entity = 'group'
                    and c.after ->> r.group_by = r.group_value
                    and c.before ->> r.group_by is distinct from r.group_value
                order by c.change_id desc limit 1
            )
            union all
            (
                select
                    c.recorded_at, 'the attribute took the value', c.change_id, c.event_id, c.source, c.occurred_at
                from dsync.changes as c
                where r.kind = 'attribute' and c.entity_id = g.user_id and c.entity = 'user'
                    and c.after -> 'custom_attributes' #> r.path @> r.value
                    and not coalesce(c.before -> 'custom_attributes' #> r.path @> r.value, false)
                order by c.change_id desc limit 1
            )
            union all
            select r.since, 'the rule was made', null, null, null, null where r.since is not null
        ) as w
        order by w.at desc nulls last, w.change_id desc nulls last
        limit 1
    ) as w on true
    where g.user_id = explain.user_id and g.version = (select max(v.version) from dsync.role_versions as v)
    order by g.priority desc, g.rank, g.role;
end;
comment on function directory.explain(text) is
    'Why a user has each role: the rule, since when, and the event by which it came about. Nulls where history does not reach back so far.';

-- What only the programs do.
revoke execute on function
    dsync.prepare_history(timestamptz), dsync.drop_history(timestamptz), dsync.recording(),
    dsync.let_see(text, text, text), dsync.grant_readers()
from public;
