/** What S3 takes in one piece. */
export const MAX_OBJECT_BYTES = 5 * 1024 ** 3;
