-- Words are cut otherwise than before: the index is made anew, room by room, as they are searched.
TRUNCATE search_words, search_rooms;
