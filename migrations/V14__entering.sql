-- How a transaction that writes the projection begins, in one round trip: which tables it means, its locks, and which of
-- the people it speaks of are erased.

-- A function, because each of its statements sees what was committed before it: an erasure that the locks were waiting
-- for is known to the last one; in a single statement it would not be. It has no search_path of its own, which would undo
-- at its end the one that it sets.
create function dsync.enter(directories text[], people text[]) returns setof text language plpgsql volatile as $$
begin
    -- A setting of the connection would get lost in a pooler between.
    perform set_config('search_path', 'dsync, pg_temp', true);
    -- The one that erasures and rebuilds hold alone comes first: whoever holds directories' locks already has it.
    perform pg_advisory_xact_lock_shared(hashtext('dsync erasures'), 0);
    -- Always in the same order, so that writers wait for each other in a line and not in a ring; and out of 1,024 locks,
    -- so that a batch of many directories cannot exhaust the lock table.
    perform pg_advisory_xact_lock(hashtext('dsync directories'), b.bucket)
    from (
        select distinct hashtext(x.id) & 1023 as bucket from unnest(enter.directories) as x (id) order by bucket
    ) as b;
    return query select e.user_id from dsync.erased as e where e.user_id = any(enter.people);
end
$$;
comment on function dsync.enter(text[], text[]) is
    'Begins a transaction that writes into the projection: takes the locks of directories and answers which people are erased.';
revoke execute on function dsync.enter(text[], text[]) from public;
