-- A membership's event also describes the group. When an erasure takes the event from the log, the group's row may be all that
-- still knows what it said. dsync.overwritten now names the event, so that `verify` and `rebuild` can tell such a row from one
-- that was changed by hand.
alter table dsync.overwritten
    add column group_id text collate "C",
    add column event_id text collate "C",
    add column source text collate "C";
comment on column dsync.overwritten.group_id is
    'The group that the message described, if it was a membership''s. Verifying and rebuilding take from the group''s row what only this message said.';
comment on column dsync.overwritten.event_id is 'The event of that message, as in the columns version_event and seen_event.';
comment on column dsync.overwritten.source is 'Its source, as in the columns version_source and seen_source.';

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
