-- Users of other servers whose devices changed while it was not known whether they are in a room with anyone here.
CREATE TABLE partial_device_lists (
  user_id text PRIMARY KEY
);
