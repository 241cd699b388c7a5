-- Media that administrators keep from everyone, and media that they keep from that. A row of another server's media may
-- be there for this alone, without content.
ALTER TABLE media ADD COLUMN quarantined_by text;
ALTER TABLE media ADD COLUMN protected boolean NOT NULL DEFAULT false;
CREATE INDEX media_quarantined ON media (sha256) WHERE quarantined_by IS NOT NULL;
