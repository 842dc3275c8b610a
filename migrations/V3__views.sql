-- What readers see: only what is live. An object is live when it was seen after it was last gone, and after its
-- directory was last gone; a membership also needs its user and its group live, and to have been seen after each of
-- them was last gone. An unknown directory is not gone: what it holds may be told first.

create schema directory;
comment on schema directory is
    'Who works where, in which groups: the customers'' directories as WorkOS reports them. Read only; every view shows only what is live.';

create view directory.directories with (security_invoker = true) as
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
where d.seen_at > d.gone_at;

create view directory.users with (security_invoker = true) as
select
    u.id,
    u.directory_id,
    u.organization_id,
    u.idp_id,
    u.email,
    u.username,
    u.first_name,
    u.last_name,
    u.name,
    u.job_title,
    u.state,
    coalesce(u.state = 'active', false) as active,
    u.role,
    u.roles,
    u.custom_attributes,
    u.raw_attributes,
    u.created_at,
    u.updated_at
from dsync.users as u
left join dsync.directories as d on d.id = u.directory_id
where u.seen_at > u.gone_at
    and (d.id is null or (d.seen_at > d.gone_at and u.seen_at > d.gone_at));

create view directory.groups with (security_invoker = true) as
select
    g.id,
    g.directory_id,
    g.organization_id,
    g.idp_id,
    g.name,
    g.raw_attributes,
    g.created_at,
    g.updated_at
from dsync.groups as g
left join dsync.directories as d on d.id = g.directory_id
where g.seen_at > g.gone_at
    and (d.id is null or (d.seen_at > d.gone_at and g.seen_at > d.gone_at));

create view directory.memberships with (security_invoker = true) as
select
    m.group_id,
    m.user_id,
    m.directory_id,
    m.organization_id,
    m.seen_at
from dsync.memberships as m
join dsync.users as u on u.id = m.user_id and u.directory_id = m.directory_id
join dsync.groups as g on g.id = m.group_id and g.directory_id = m.directory_id
left join dsync.directories as d on d.id = m.directory_id
where m.seen_at > greatest(m.gone_at, u.gone_at, g.gone_at)
    and u.seen_at > u.gone_at
    and g.seen_at > g.gone_at
    and (d.id is null or (d.seen_at > d.gone_at and least(m.seen_at, u.seen_at, g.seen_at) > d.gone_at));

comment on view directory.directories is 'The customers'' directories that are connected or were and are not deleted. One row a directory.';
comment on column directory.directories.id is 'WorkOS''s id of the directory (directory_…).';
comment on column directory.directories.organization_id is 'WorkOS''s organization the directory is linked to; null until it is.';
comment on column directory.directories.directory_id is 'The same as id, so that every view has this column.';
comment on column directory.directories.name is 'The directory''s name.';
comment on column directory.directories.type is 'The kind of identity provider, such as okta scim v2.0.';
comment on column directory.directories.state is 'active, inactive, validating, invalid_credentials, deleting, or what WorkOS adds. linked is shown as active, unlinked as inactive.';
comment on column directory.directories.external_key is 'WorkOS''s external key of the directory.';
comment on column directory.directories.created_at is 'When the directory was made, by WorkOS''s account.';
comment on column directory.directories.updated_at is 'When the directory last changed, by WorkOS''s account.';

comment on view directory.users is 'People in the directories, whatever their state: ask for active. One row a directory user; a person that returns has a new id.';
comment on column directory.users.id is 'WorkOS''s id of the directory user (directory_user_…).';
comment on column directory.users.directory_id is 'The directory the user is in.';
comment on column directory.users.organization_id is 'The directory''s organization, or while that is unknown the user''s own.';
comment on column directory.users.idp_id is 'The identity provider''s id. Not unique: a person that returned has it too.';
comment on column directory.users.email is 'E-mail address, from wherever WorkOS sent it (email, custom attributes, the primary of emails). Not unique. Indexed as lower(email).';
comment on column directory.users.username is 'User name, from either place WorkOS sends it.';
comment on column directory.users.first_name is 'First name.';
comment on column directory.users.last_name is 'Last name.';
comment on column directory.users.name is 'Full name, where WorkOS sends one.';
comment on column directory.users.job_title is 'Job title, from either place WorkOS sends it.';
comment on column directory.users.state is 'active, suspended, inactive, or what WorkOS adds; null if it said nothing.';
comment on column directory.users.active is 'Whether state is active. Only then may the person have access.';
comment on column directory.users.role is 'WorkOS''s own role (slug).';
comment on column directory.users.roles is 'WorkOS''s own roles (slugs); the one in role where only that came. Never null.';
comment on column directory.users.custom_attributes is 'Custom attributes as WorkOS maps them.';
comment on column directory.users.raw_attributes is 'The identity provider''s attributes as WorkOS received them.';
comment on column directory.users.created_at is 'When the user was made, by WorkOS''s account.';
comment on column directory.users.updated_at is 'When the user last changed, by WorkOS''s account. Roles and memberships change without it.';

comment on view directory.groups is 'Groups in the directories. One row a group.';
comment on column directory.groups.id is 'WorkOS''s id of the group (directory_group_…).';
comment on column directory.groups.directory_id is 'The directory the group is in.';
comment on column directory.groups.organization_id is 'The directory''s organization, or while that is unknown the group''s own.';
comment on column directory.groups.idp_id is 'The identity provider''s id of the group.';
comment on column directory.groups.name is 'The group''s name. Not unique.';
comment on column directory.groups.raw_attributes is 'The identity provider''s attributes as WorkOS received them.';
comment on column directory.groups.created_at is 'When the group was made, by WorkOS''s account.';
comment on column directory.groups.updated_at is 'When the group last changed, by WorkOS''s account. Its members change without it.';

comment on view directory.memberships is 'Who is in which group. One row a user and group, both live and in the same directory.';
comment on column directory.memberships.group_id is 'The group.';
comment on column directory.memberships.user_id is 'The user.';
comment on column directory.memberships.directory_id is 'The directory both are in.';
comment on column directory.memberships.organization_id is 'The directory''s organization, or while that is unknown the one the membership''s event named.';
comment on column directory.memberships.seen_at is 'When WorkOS last said so.';
