-- Roles: WorkOS's own, and what rules add to them. Rules come in versions, each whole: the newest holds, from the
-- moment it is committed; the older ones stay, so that past roles can be derived from them and dsync.changes.

create table dsync.role_versions (
    version bigint primary key check (version >= 0),
    applied_at timestamptz not null default now()
);
comment on table dsync.role_versions is 'Sets of role rules, by `dsync-projector roles apply`. The greatest version holds.';
-- WorkOS's own roles hold without any rule.
insert into dsync.role_versions (version) values (0);

create table dsync.role_priorities (
    version bigint not null references dsync.role_versions on delete cascade,
    role text collate "C" not null,
    priority integer not null,
    primary key (version, role)
);
comment on table dsync.role_priorities is 'How strong a role is, wherever it comes from, unless the rule that gives it says otherwise. Else 0.';

create table dsync.role_rules (
    version bigint not null references dsync.role_versions on delete cascade,
    rule integer not null,
    kind text not null check (kind in ('group', 'attribute', 'default')),
    role text collate "C" not null,
    priority integer,
    organization_id text collate "C",
    directory_id text collate "C",
    group_by text check (group_by in ('id', 'name', 'idp_id')),
    group_value text,
    path text[],
    value jsonb,
    since timestamptz not null default now(),
    primary key (version, rule),
    check (organization_id is null or directory_id is null),
    check ((kind = 'group') = (group_by is not null and group_value is not null)),
    check ((kind = 'attribute') = (path is not null and value is not null))
);
comment on table dsync.role_rules is 'The rules of each version. A rule holds for an organization, a directory, or for all.';
comment on column dsync.role_rules.rule is 'Its place in the file.';
comment on column dsync.role_rules.group_by is 'By what of the group group_value is: id, name or idp_id.';
comment on column dsync.role_rules.path is 'Keys into custom_attributes, outermost first.';
comment on column dsync.role_rules.value is 'What must stand there, or be among what stands there if that is a list.';
comment on column dsync.role_rules.since is 'Since when this rule has stood in every version.';

-- Who has which role by which version of the rules. One row a version, user and role. Asked for one version, and mostly
-- for one user: both must get through to the tables, so both stand in the partitions of every window.
create view dsync.granted_roles with (security_invoker = true) as
with live as not materialized (
    select u.id, u.directory_id, u.organization_id, u.role, u.roles, u.custom_attributes
    from dsync.users as u
    left join dsync.directories as d on d.id = u.directory_id
    where u.state = 'active' and u.seen_at > u.gone_at
        and (d.id is null or (d.seen_at > d.gone_at and u.seen_at > d.gone_at))
), candidates as not materialized (
    select
        v.version, u.id as user_id, u.directory_id, u.organization_id, r.role collate "C" as role, 1 as rank,
        null::text as group_id, null::integer as rule, 0 as priority, 0 as scope
    from dsync.role_versions as v
    cross join live as u
    cross join lateral unnest(u.roles || u.role) as r (role)
    where r.role <> ''
    union all
    select
        r.version, u.id, u.directory_id, u.organization_id, r.role, 2, g.id, r.rule, r.priority, 0
    from dsync.memberships as m
    join dsync.users as u on u.id = m.user_id and u.directory_id = m.directory_id
    join dsync.groups as g on g.id = m.group_id and g.directory_id = m.directory_id
    left join dsync.directories as d on d.id = m.directory_id
    cross join lateral (values ('id', g.id), ('name', g.name), ('idp_id', g.idp_id)) as k (group_by, group_value)
    join dsync.role_rules as r
        on r.kind = 'group' and r.group_by = k.group_by and r.group_value = k.group_value
        and (r.directory_id is null or r.directory_id = u.directory_id)
        and (r.organization_id is null or r.organization_id = u.organization_id)
    where u.state = 'active'
        and m.seen_at > greatest(m.gone_at, u.gone_at, g.gone_at)
        and u.seen_at > u.gone_at
        and g.seen_at > g.gone_at
        and (d.id is null or (d.seen_at > d.gone_at and least(m.seen_at, u.seen_at, g.seen_at) > d.gone_at))
    union all
    select r.version, u.id, u.directory_id, u.organization_id, r.role, 3, null, r.rule, r.priority, 0
    from live as u
    join dsync.role_rules as r
        on r.kind = 'attribute' and u.custom_attributes #> r.path @> r.value
        and (r.directory_id is null or r.directory_id = u.directory_id)
        and (r.organization_id is null or r.organization_id = u.organization_id)
    union all
    select
        r.version, u.id, u.directory_id, u.organization_id, r.role, 4, null, r.rule, r.priority,
        case when r.directory_id is not null then 3 when r.organization_id is not null then 2 else 1 end
    from live as u
    join dsync.role_rules as r
        on r.kind = 'default'
        and (r.directory_id is null or r.directory_id = u.directory_id)
        and (r.organization_id is null or r.organization_id = u.organization_id)
), placed as not materialized (
    select
        c.version, c.user_id, c.directory_id, c.organization_id, c.role, c.rank, c.group_id, c.rule, c.scope,
        coalesce(c.priority, 0) as priority,
        row_number() over (
            partition by c.version, c.user_id, c.role
            order by c.rank, c.scope desc, coalesce(c.priority, 0) desc, c.group_id, c.rule
        ) as place,
        min(c.rank) over (partition by c.version, c.user_id) as first_rank,
        max(c.scope) over (partition by c.version, c.user_id) as nearest
    from (
        select
            c.version, c.user_id, c.directory_id, c.organization_id, c.role, c.rank, c.group_id, c.rule, c.scope,
            coalesce(case c.rank when 1 then null else c.priority end, p.priority, 0) as priority
        from candidates as c
        left join dsync.role_priorities as p on p.version = c.version and p.role = c.role
    ) as c
)
select
    p.version, p.user_id, p.directory_id, p.organization_id, p.role,
    (array['workos', 'group', 'attribute', 'default'])[p.rank] as source,
    p.group_id, p.priority, p.rule, p.rank
from placed as p
-- A default is for who has no other role; the nearest one counts.
where p.place = 1 and (p.rank < 4 or (p.first_rank = 4 and p.scope = p.nearest));
comment on view dsync.granted_roles is 'Who has which role by which version of the rules. Readers use directory.user_roles.';

create view directory.user_roles with (security_invoker = true) as
select r.user_id, r.directory_id, r.organization_id, r.role, r.source, r.group_id, r.priority
from dsync.granted_roles as r
where r.version = (select max(v.version) from dsync.role_versions as v);

create view directory.user_primary_role with (security_invoker = true) as
select distinct on (r.user_id)
    r.user_id, r.directory_id, r.organization_id, r.role, r.source, r.group_id, r.priority
from dsync.granted_roles as r
where r.version = (select max(v.version) from dsync.role_versions as v)
order by r.user_id, r.priority desc, r.rank, r.role;

comment on view directory.user_roles is 'The roles of active users: WorkOS''s own and what the role rules add. One row a user and role.';
comment on column directory.user_roles.user_id is 'The user.';
comment on column directory.user_roles.directory_id is 'The user''s directory.';
comment on column directory.user_roles.organization_id is 'The user''s organization.';
comment on column directory.user_roles.role is 'The role.';
comment on column directory.user_roles.source is 'workos, group (a rule for one of the user''s groups), attribute (a rule for a custom attribute) or default: the first of these that gives the role.';
comment on column directory.user_roles.group_id is 'The group that gives it, if source is group.';
comment on column directory.user_roles.priority is 'How strong it is: the greater, the stronger.';
comment on view directory.user_primary_role is 'The strongest role of each active user that has any: of the greatest priority, then by source as listed there, then by name.';
comment on column directory.user_primary_role.user_id is 'The user.';
comment on column directory.user_primary_role.directory_id is 'The user''s directory.';
comment on column directory.user_primary_role.organization_id is 'The user''s organization.';
comment on column directory.user_primary_role.role is 'The role.';
comment on column directory.user_primary_role.source is 'As in user_roles.';
comment on column directory.user_primary_role.group_id is 'As in user_roles.';
comment on column directory.user_primary_role.priority is 'As in user_roles.';
