-- What the reconciler knows of its own work: whose turn it is, how far the catch-up is, which deletions wait for a
-- person, what must be read again. None of it is part of the projection, which the reconciler never writes.

create table dsync.sweeps (
    directory_id text collate "C" primary key,
    added_at timestamptz not null default now(),
    started_at timestamptz,
    swept_at timestamptz,
    drift bigint,
    again_at timestamptz,
    failures integer not null default 0,
    retry_at timestamptz,
    holder text,
    held_until timestamptz
);
comment on table dsync.sweeps is
    'One row a directory that is to be swept: when it last was, and which reconciler works on it now.';
comment on column dsync.sweeps.added_at is 'When the reconciler first knew of it.';
comment on column dsync.sweeps.started_at is 'When a sweep of it last began.';
comment on column dsync.sweeps.swept_at is 'When the last sweep that read all of it began.';
comment on column dsync.sweeps.drift is 'How many differences that sweep found.';
comment on column dsync.sweeps.again_at is 'From when on it is due again before its turn.';
comment on column dsync.sweeps.failures is 'Sweeps in a row that could not read all of it.';
comment on column dsync.sweeps.retry_at is 'Not before this moment is it tried again.';
comment on column dsync.sweeps.holder is 'The reconciler that works on it now: it alone sends requests for this directory.';
comment on column dsync.sweeps.held_until is 'When its lease ends unless renewed.';

create table dsync.duties (
    duty text primary key check (duty in ('catch_up', 'directories')),
    position timestamptz,
    rewind_id bigint not null default 0,
    done_at timestamptz,
    holder text,
    held_until timestamptz
);
comment on table dsync.duties is 'What one reconciler does for all: the catch-up, and the list of directories.';
comment on column dsync.duties.position is
    'catch_up: everything that happened before it, less EVENTS_HOLDBACK, was read from the Events API and acknowledged by the log.';
comment on column dsync.duties.rewind_id is 'catch_up: the newest of dsync.rewinds after which it began anew.';
comment on column dsync.duties.done_at is 'When it was last begun and came to its end.';
comment on column dsync.duties.holder is 'The reconciler that does it now.';
comment on column dsync.duties.held_until is 'When its lease ends unless renewed.';
insert into dsync.duties (duty) values ('catch_up'), ('directories');

create table dsync.held_deletions (
    directory_id text collate "C" not null,
    entity text not null check (entity in ('directory', 'user', 'group', 'membership')),
    group_id text collate "C" not null default '',
    user_id text collate "C" not null default '',
    held_since timestamptz not null default now(),
    primary key (directory_id, entity, group_id, user_id)
);
comment on table dsync.held_deletions is
    'Deletions that a sweep found and the guard holds back: too many at once (SWEEP_MAX_DELETIONS). They wait for `dsync-reconciler approve`, or until a later sweep finds the objects again.';

create table dsync.rereads (
    target text not null check (target in ('directory', 'user', 'group', 'memberships_of_user', 'memberships_of_group')),
    id text collate "C" not null,
    directory_id text collate "C" not null,
    due_at timestamptz not null,
    primary key (target, id)
);
create index rereads_due on dsync.rereads (due_at);
comment on table dsync.rereads is
    'What differed at a sweep by less than the clock margin, and is read again once that has passed.';

-- Objects that fail closed in doubt. They follow from the registers, so nobody keeps a list: a reading that is late
-- enough takes a row out of this view by itself. It is asked every second, so it must be found in these indexes alone;
-- the `limit 1` keeps the planner from reading all memberships for it.
create index directories_in_doubt on dsync.directories (id)
where seen_at <= gone_at and version_observed_at > gone_at;
create index users_in_doubt on dsync.users (id)
where seen_at <= gone_at and version_observed_at > gone_at;
create index groups_in_doubt on dsync.groups (id)
where seen_at <= gone_at and version_observed_at > gone_at;
create index users_back on dsync.users (id)
where seen_at > gone_at and gone_at > '-infinity';
create index groups_back on dsync.groups (id)
where seen_at > gone_at and gone_at > '-infinity';

create view dsync.checks with (security_invoker = true) as
select
    'directory' as target,
    d.id,
    d.id as directory_id,
    d.gone_at as after,
    d.version_observed_at as settled_at
from dsync.directories as d
where d.seen_at <= d.gone_at and d.version_observed_at > d.gone_at
union all
select 'user', u.id, u.directory_id, u.gone_at, u.version_observed_at
from dsync.users as u
where u.seen_at <= u.gone_at and u.version_observed_at > u.gone_at
    and not exists (
        select from dsync.directories as d
        where d.id = u.directory_id and d.seen_at <= d.gone_at
    )
union all
select 'group', g.id, g.directory_id, g.gone_at, g.version_observed_at
from dsync.groups as g
where g.seen_at <= g.gone_at and g.version_observed_at > g.gone_at
    and not exists (
        select from dsync.directories as d
        where d.id = g.directory_id and d.seen_at <= d.gone_at
    )
union all
select 'memberships_of_user', u.id, u.directory_id, u.gone_at, u.gone_at
from dsync.users as u
cross join lateral (
    select from dsync.memberships as m
    where m.user_id = u.id and m.seen_at > m.gone_at and m.seen_at <= u.gone_at
    limit 1
) as m
where u.seen_at > u.gone_at and u.gone_at > '-infinity'
    and not exists (
        select from dsync.directories as d
        where d.id = u.directory_id and d.seen_at <= d.gone_at
    )
union all
select 'memberships_of_group', g.id, g.directory_id, g.gone_at, g.gone_at
from dsync.groups as g
cross join lateral (
    select from dsync.memberships as m
    where m.group_id = g.id and m.seen_at > m.gone_at and m.seen_at <= g.gone_at
    limit 1
) as m
where g.seen_at > g.gone_at and g.gone_at > '-infinity'
    and not exists (
        select from dsync.directories as d
        where d.id = g.directory_id and d.seen_at <= d.gone_at
    );
comment on view dsync.checks is
    'What the reconciler reads at once and again after the margin: objects that stay gone although an event spoke of them since, and the memberships of objects that came back.';
comment on column dsync.checks.target is 'What is to be read: directory, user, group, memberships_of_user or memberships_of_group.';
comment on column dsync.checks.id is 'Whose.';
comment on column dsync.checks.directory_id is 'The directory it is in.';
comment on column dsync.checks.after is 'Only a reading of a later moment can show it is there.';
comment on column dsync.checks.settled_at is 'A reading of this moment or a later one settles it either way.';

create view directory.sync_status with (security_invoker = true) as
select
    d.directory_id,
    d.organization_id,
    a.last_event_at,
    a.last_applied_at,
    s.swept_at as last_swept_at,
    s.drift as last_drift,
    (
        select count(*) from dsync.held_deletions as h
        where h.directory_id = d.directory_id
    ) as held_deletions
from directory.directories as d
left join dsync.directory_activity as a on a.directory_id = d.directory_id
left join dsync.sweeps as s on s.directory_id = d.directory_id;
comment on view directory.sync_status is 'How fresh each directory is. One row a directory.';
comment on column directory.sync_status.directory_id is 'The directory.';
comment on column directory.sync_status.organization_id is 'The organization it is linked to; null until it is.';
comment on column directory.sync_status.last_event_at is 'When the newest thing that was applied happened, by WorkOS''s clock.';
comment on column directory.sync_status.last_applied_at is 'When something of this directory was last applied.';
comment on column directory.sync_status.last_swept_at is 'When the last sweep that compared all of it with WorkOS began; null before the first.';
comment on column directory.sync_status.last_drift is 'How many differences that sweep found. They were repaired, but for deletions that are held back.';
comment on column directory.sync_status.held_deletions is 'Deletions held back until someone approves them (dsync-reconciler approve), because there were too many at once.';
