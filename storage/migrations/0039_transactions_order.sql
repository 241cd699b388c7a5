-- What a device has sent, the newest first: by position, as several processes give out nids at the same time.
CREATE INDEX events_txn_pos ON events (sender, txn_device, pos) WHERE txn_id IS NOT NULL;
DROP INDEX events_txn;
