import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import { escapeHtml, mailButton, mailPage, subjectLine } from './mail-layout.ts';
import type { Mail } from './mailer.ts';
import type { RoomNames } from './notification.ts';

/** What a mail tells of one room. */
export interface MailRoom {
  readonly roomId: string;
  readonly names: RoomNames;
  /** Oldest first. */
  readonly messages: readonly MailMessage[];
}

export interface MailMessage {
  readonly event: StoredEvent;
  readonly senderName: string;
}

export interface NotificationMailOptions {
  readonly to: string;
  readonly userId: string;
  readonly serverName: string;
  /** Where a client is that opens rooms at `/#/room/…`. */
  readonly clientUrl: string;
  readonly unsubscribeUrl: string;
}

const MAX_ROOMS = 10;
const MAX_MESSAGES = 5;
const MAX_BODY = 500;

/** A mail that tells what is unread, room by room. */
export function notificationMail(rooms: readonly MailRoom[], options: NotificationMailOptions): Mail {
  const { to, userId, serverName, clientUrl, unsubscribeUrl } = options;
  const shown = rooms.slice(-MAX_ROOMS);
  const footer = `This mail is for ${userId} on ${serverName}.`;
  const text = shown.map((room) => roomText(room, roomUrl(clientUrl, room))).join('\n\n');
  const html = shown.map((room) => roomHtml(room, roomUrl(clientUrl, room))).join('\n');
  const stop = 'Get no more mails like this';
  return {
    to,
    subject: subjectOf(rooms),
    text: `${text}\n\n-- \n${footer}\n${stop}: ${unsubscribeUrl}\n`,
    html: mailPage(
      'You have unread messages',
      html,
      `${escapeHtml(footer)} <a href="${escapeHtml(unsubscribeUrl)}">${stop}</a>`,
    ),
    unsubscribeUrl,
  };
}

function subjectOf(rooms: readonly MailRoom[]): string {
  const [room] = rooms;
  const count = rooms.reduce((sum, { messages }) => sum + messages.length, 0);
  if (rooms.length > 1) return `${count} unread messages in ${rooms.length} rooms`;
  const [message] = room!.messages;
  const where = nameOf(room!);
  if (count > 1) return subjectLine(`${count} unread messages in ${where}`);
  if (message!.event.type === 'm.room.member')
    return subjectLine(`${message!.senderName} has invited you to ${where}`);
  return subjectLine(`Message from ${message!.senderName} in ${where}`);
}

function roomText(room: MailRoom, url: string): string {
  const { left, lines } = linesOf(room);
  const more = left > 0 ? [`(${left} earlier)`] : [];
  return [nameOf(room), ...more, ...lines.map(({ who, what }) => `${who}: ${what}`), url].join('\n');
}

function roomHtml(room: MailRoom, url: string): string {
  const { left, lines } = linesOf(room);
  const more = left > 0 ? `<p style="color:#656d77">${left} earlier</p>` : '';
  const messages = lines
    .map(({ who, what }) => {
      const said = escapeHtml(what).replaceAll('\n', '<br>');
      return `<p><strong>${escapeHtml(who)}</strong><br>${said}</p>`;
    })
    .join('\n');
  const title = `<h2 style="font-size:16px">${escapeHtml(nameOf(room))}</h2>`;
  return `${title}\n${more}${messages}\n${mailButton(url, 'Open the room')}`;
}

function linesOf({ messages }: MailRoom): { left: number; lines: Array<{ who: string; what: string }> } {
  const lines = messages
    .slice(-MAX_MESSAGES)
    .map(({ event, senderName }) => ({ who: senderName, what: bodyOf(event) }));
  return { left: messages.length - lines.length, lines };
}

function bodyOf({ type, content }: StoredEvent): string {
  if (type === 'm.room.member') return 'has invited you';
  if (type === 'm.room.encrypted') return 'sent an encrypted message';
  const { body } = content;
  if (type !== 'm.room.message' || typeof body !== 'string') return `sent an event (${type.slice(0, 100)})`;
  return body.length > MAX_BODY ? `${body.slice(0, MAX_BODY)}…`.toWellFormed() : body;
}

function nameOf({ names, messages }: MailRoom): string {
  return names.roomName ?? names.roomAlias ?? `a conversation with ${messages[0]!.senderName}`;
}

function roomUrl(clientUrl: string, { roomId }: MailRoom): string {
  return `${clientUrl.replace(/\/$/, '')}/#/room/${encodeURIComponent(roomId)}`;
}
