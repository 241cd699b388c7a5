/** Per room, how many appended events are on their way into the database, or still to be announced. */
export class Commits {
  readonly #counts = new Map<string, number>();
  readonly #idle = new Map<string, PromiseWithResolvers<void>>();

  of(roomId: string): number {
    return this.#counts.get(roomId) ?? 0;
  }

  set(roomId: string, count: number): void {
    if (count > 0) {
      this.#counts.set(roomId, count);
      return;
    }
    this.#counts.delete(roomId);
    if (this.#idle.size === 0) return;
    this.#idle.get(roomId)?.resolve();
    this.#idle.delete(roomId);
  }

  /** Rooms of which something is on its way. */
  rooms(): Iterable<string> {
    return this.#counts.keys();
  }

  /** Resolves when nothing of the room is on its way. */
  async idle(roomId: string): Promise<void> {
    while (this.#counts.has(roomId)) {
      let idle = this.#idle.get(roomId);
      if (!idle) {
        idle = Promise.withResolvers();
        this.#idle.set(roomId, idle);
      }
      await idle.promise;
    }
  }
}
