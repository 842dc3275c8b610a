-- Building the projection again from the log (dsync-projector rebuild): what each time replaced, so that it can be put
-- back, and which directories the reconciler is asked to list whole because the log no longer reaches back far enough.

create table dsync.rebuilds (
    id bigint generated always as identity primary key,
    done_at timestamptz not null default now(),
    stream_created timestamptz not null,
    seq bigint not null,
    removals_seq bigint not null,
    rows_replaced bigint not null,
    undone_at timestamptz
);
comment on table dsync.rebuilds is
    'Each time the projection was built again from the log: where the lanes stood, and how many rows were not what the log says.';
comment on column dsync.rebuilds.seq is 'The position of the lane all when the rows were replaced: it goes back there when that is undone.';
comment on column dsync.rebuilds.removals_seq is 'The same of the lane removals.';

create table dsync.replaced (
    rebuild_id bigint not null references dsync.rebuilds (id) on delete cascade,
    entity text not null check (entity in ('directory', 'user', 'group', 'membership')),
    id text collate "C" not null,
    user_id text collate "C" not null default '',
    image jsonb,
    primary key (rebuild_id, entity, id, user_id)
);
create index replaced_user on dsync.replaced (user_id) where entity in ('user', 'membership');
comment on table dsync.replaced is
    'Rows as they were before the newest rebuild replaced them: what `rebuild --undo` puts back. Kept for a week. Personal data.';
comment on column dsync.replaced.id is 'The object''s id; of a membership, the group''s.';
comment on column dsync.replaced.user_id is 'Of a user or a membership, the user''s id.';
comment on column dsync.replaced.image is 'The row as it was; null where there was none.';

alter table dsync.sweeps add column relist_at timestamptz;
alter table dsync.sweeps add column relisted_at timestamptz;
comment on column dsync.sweeps.relist_at is
    'When a sweep was asked for that appends everything it reads, not only differences.';
comment on column dsync.sweeps.relisted_at is 'When the last such sweep, which read all of it, began.';

create table dsync.overwritten (
    stream_created timestamptz not null,
    seq bigint not null,
    primary key (stream_created, seq)
);
comment on table dsync.overwritten is
    'Messages of the log that erasing people took from it: a log that begins after some of these has still lost nothing else.';

-- Readers see none of it.
alter table dsync.rebuilds enable row level security;
alter table dsync.replaced enable row level security;
alter table dsync.overwritten enable row level security;
