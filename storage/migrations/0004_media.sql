-- The content repository. Bytes are kept by their hash in a media store; a row gives them a name.
CREATE TABLE media (
  origin text NOT NULL,
  media_id text NOT NULL,
  -- Who uploaded it; null for media of other servers and for images of previews.
  user_id text,
  created_ts bigint NOT NULL,
  last_access_ts bigint NOT NULL,
  -- Null while a reserved id waits for its upload.
  sha256 bytea,
  size bigint,
  content_type text,
  filename text,
  -- When a reserved id runs out.
  expires_ts bigint,
  -- Came in after the unauthenticated endpoints were frozen: served by the authenticated ones only.
  authenticated boolean NOT NULL,
  PRIMARY KEY (origin, media_id)
);
CREATE INDEX media_by_hash ON media (sha256);
CREATE INDEX media_by_user ON media (user_id) WHERE user_id IS NOT NULL;
CREATE INDEX media_reserved ON media (expires_ts) WHERE sha256 IS NULL;

-- Thumbnails belong to content, whatever names it has.
CREATE TABLE media_thumbnails (
  sha256 bytea NOT NULL,
  width integer NOT NULL,
  height integer NOT NULL,
  method text NOT NULL,
  animated boolean NOT NULL,
  thumbnail_sha256 bytea NOT NULL,
  size bigint NOT NULL,
  content_type text NOT NULL,
  PRIMARY KEY (sha256, width, height, method, animated)
);
CREATE INDEX media_thumbnails_by_hash ON media_thumbnails (thumbnail_sha256);

CREATE TABLE url_previews (
  url_sha256 bytea PRIMARY KEY,
  preview text NOT NULL,
  fetched_ts bigint NOT NULL,
  expires_ts bigint NOT NULL
);
