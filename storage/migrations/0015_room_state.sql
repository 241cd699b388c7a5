-- The room's state before the event came, where that is another than the state before the event itself: an event that
-- forks off an older one, or comes after a gap.
ALTER TABLE events ADD COLUMN room_state_before bigint;
