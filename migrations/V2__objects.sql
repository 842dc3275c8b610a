-- The projected objects. Each row holds registers that only grow (see schema::observation): the newest version of the
-- attributes, when it was last seen, when it was last gone. Rows come in any order, so nothing refers to another table
-- and nothing is unique but the id. `-infinity` stands for never, so that comparisons need no nulls.
--
-- `organization_id` is the resolved one: the directory's, or while that is unknown the row's own. It follows from the
-- rows and is kept here so that readers and row-level security find it in an index.

create table dsync.directories (
    id text collate "C" primary key,
    organization_id text collate "C",
    name text,
    type text,
    state text,
    external_key text,
    created_at timestamptz,
    updated_at timestamptz,
    version_updated_at timestamptz not null default '-infinity',
    version_observed_at timestamptz not null default '-infinity',
    version_event text collate "C" not null default '',
    version_source text collate "C" not null default '',
    version_digest bigint not null default 0,
    seen_at timestamptz not null default '-infinity',
    seen_event text collate "C" not null default '',
    seen_source text collate "C" not null default '',
    gone_at timestamptz not null default '-infinity',
    gone_event text collate "C" not null default '',
    gone_source text collate "C" not null default ''
);
create index directories_organization on dsync.directories (organization_id);

create table dsync.users (
    id text collate "C" primary key,
    directory_id text collate "C" not null,
    organization_id text collate "C",
    own_organization_id text collate "C",
    idp_id text,
    email text,
    username text,
    first_name text,
    last_name text,
    name text,
    job_title text,
    state text,
    role text,
    roles text[] not null default '{}',
    custom_attributes jsonb,
    raw_attributes jsonb,
    created_at timestamptz,
    updated_at timestamptz,
    version_updated_at timestamptz not null default '-infinity',
    version_observed_at timestamptz not null default '-infinity',
    version_event text collate "C" not null default '',
    version_source text collate "C" not null default '',
    version_digest bigint not null default 0,
    seen_at timestamptz not null default '-infinity',
    seen_event text collate "C" not null default '',
    seen_source text collate "C" not null default '',
    gone_at timestamptz not null default '-infinity',
    gone_event text collate "C" not null default '',
    gone_source text collate "C" not null default ''
);
create index users_directory on dsync.users (directory_id);
create index users_organization on dsync.users (organization_id);
-- Hash: an identity provider may send a value longer than a b-tree holds, and only equality is ever asked.
create index users_email on dsync.users using hash (lower(email));
create index users_idp_id on dsync.users using hash (idp_id);

create table dsync.groups (
    id text collate "C" primary key,
    directory_id text collate "C" not null,
    organization_id text collate "C",
    own_organization_id text collate "C",
    idp_id text,
    name text,
    raw_attributes jsonb,
    created_at timestamptz,
    updated_at timestamptz,
    version_updated_at timestamptz not null default '-infinity',
    version_observed_at timestamptz not null default '-infinity',
    version_event text collate "C" not null default '',
    version_source text collate "C" not null default '',
    version_digest bigint not null default 0,
    seen_at timestamptz not null default '-infinity',
    seen_event text collate "C" not null default '',
    seen_source text collate "C" not null default '',
    gone_at timestamptz not null default '-infinity',
    gone_event text collate "C" not null default '',
    gone_source text collate "C" not null default ''
);
create index groups_directory on dsync.groups (directory_id);
create index groups_organization on dsync.groups (organization_id);
create index groups_idp_id on dsync.groups using hash (idp_id);

create table dsync.memberships (
    group_id text collate "C" not null,
    user_id text collate "C" not null,
    directory_id text collate "C" not null,
    organization_id text collate "C",
    own_organization_id text collate "C",
    seen_at timestamptz not null default '-infinity',
    seen_event text collate "C" not null default '',
    seen_source text collate "C" not null default '',
    gone_at timestamptz not null default '-infinity',
    gone_event text collate "C" not null default '',
    gone_source text collate "C" not null default '',
    primary key (group_id, user_id)
);
create index memberships_user on dsync.memberships (user_id);
create index memberships_directory on dsync.memberships (directory_id);
create index memberships_organization on dsync.memberships (organization_id);

comment on table dsync.directories is 'Directories, gone ones too. Readers use directory.directories.';
comment on table dsync.users is 'Users, gone ones too. Readers use directory.users.';
comment on table dsync.groups is 'Groups, gone ones too. Readers use directory.groups.';
comment on table dsync.memberships is 'Memberships, gone ones too. Readers use directory.memberships.';

create table dsync.directory_activity (
    directory_id text collate "C" primary key,
    last_event_at timestamptz not null,
    last_applied_at timestamptz not null
);
comment on table dsync.directory_activity is
    'When something of a directory was last applied. Not part of the projection: it depends on when, not only on what.';

