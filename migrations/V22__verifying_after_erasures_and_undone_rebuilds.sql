-- A membership's event also describes the group. When an erasure takes the event from the log, the group's row may be all that
-- still knows what it said. This names such events, so that `verify` and `rebuild` can tell such a row from one that was changed
-- by hand. The rows of dsync.overwritten cannot: a log that is set back gives the same sequences to other messages.
create table dsync.said_of_groups (
    group_id text collate "C" not null,
    event_id text collate "C" not null,
    source text collate "C" not null,
    directory_id text collate "C" not null,
    primary key (group_id, event_id, source)
);
alter table dsync.said_of_groups enable row level security;
comment on table dsync.said_of_groups is
    'Messages that erasing people took from the log and that described a group. Verifying and rebuilding take from the group''s row what only these said.';
comment on column dsync.said_of_groups.group_id is 'The group''s id.';
comment on column dsync.said_of_groups.event_id is 'The message''s event, as in the columns version_event and seen_event.';
comment on column dsync.said_of_groups.source is 'Its source, as in the columns version_source and seen_source.';
comment on column dsync.said_of_groups.directory_id is 'The directory that the message named for the group; if several did, the greatest, as in the group''s row.';

-- Undoing a rebuild sends the lanes back. Until they have come forward again, the tables know more than the lanes' positions say.
alter table dsync.rebuilds
    add column undone_stream timestamptz,
    add column undone_seq bigint,
    add column undone_removals_seq bigint;
comment on column dsync.rebuilds.undone_stream is 'The log in which the lanes stood when the rebuild was undone, by when it was created.';
comment on column dsync.rebuilds.undone_seq is
    'The position of the lane all before the undo sent it back. Nothing is verified or rebuilt before the lane is there again.';
comment on column dsync.rebuilds.undone_removals_seq is 'The same for the lane removals.';

comment on view directory.changes is
    'A row for every change in directories, users, groups and memberships, except for what a rebuild replaced. Role rules leave no rows. Poll with change_id > the last one handled, order by change_id; LISTEN directory_changes wakes you.';
