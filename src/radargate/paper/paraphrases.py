"""Ten ways to put each task of the router's experiments; ``{}`` stands for what is the row's own.

The first five of a task are for training rows, the last five for test rows.
"""

from __future__ import annotations

PARAPHRASES: dict[str, tuple[str, ...]] = {
    "sst2": (
        "Is the following film review negative or positive?\n\n{}\n\nAnswer:",
        "{}\n\nDid whoever wrote this like the film? Say positive if so and negative if not.",
        "Read this sentence from a movie review and decide whether its tone is positive or negative.\nSentence: {}\nTone:",
        'Critics praise some films and pan others. Judge from this line alone: "{}" Praise is positive, a pan is negative. Which is it?',
        "Label the opinion as negative or positive: {}",
        'A viewer wrote: "{}"\nWould you call that a positive or a negative verdict?',
        "Below is a comment on a movie. Answer with one word, positive or negative, for how its author felt about it.\n\nComment: {}\nFeeling:",
        "What sentiment does this express, negative or positive?\n{}",
        '"{}" Does that recommend the movie or warn you off it? Write positive for the former, negative for the latter.',
        'Sort the review into one of two boxes, "negative" or "positive".\n\nReview text: {}\nBox:',
    ),
    "task512_twitter_emotion_classification": (
        "Which emotion does the author of this tweet feel: sadness, joy, love, anger, fear or surprise?\n\n{}\n\nEmotion:",
        'Someone posted on Twitter: "{}" Name the feeling behind it. You may choose from sadness, joy, love, anger, fear and surprise.',
        "Read the Twitter post below. Decide what its writer was feeling when posting it and answer with a single word out of these six: "
        "joy, sadness, anger, love, surprise, fear.\nPost: {}\nFeeling:",
        "{}\n\nTag this tweet with one of: anger, fear, joy, love, sadness, surprise.",
        "Tweets show moods. What mood is this user in: love, fear, surprise, sadness, anger or joy?\nTweet: {}",
        "Classify the user's emotion in the post. The classes are fear, surprise, joy, sadness, love and anger.\nTwitter post: {}\nClass:",
        'How did the person who tweeted the following feel? Reply with sadness, joy, love, anger, fear or surprise.\n\n"{}"',
        "Here is a short message from a Twitter timeline:\n{}\nPick the emotion that it expresses best: love, joy, surprise, anger, sadness, fear.",
        "One tweet, one emotion (joy, love, surprise, sadness, fear, anger).\n{}\nIts emotion:",
        "You moderate a social network and sort its posts by the feeling of those who write them, which is always one of sadness, joy, love, "
        "anger, fear and surprise. Under which do you put this Twitter post?\n\n{}\n\nAnswer:",
    ),
    "task875_emotion_classification": (
        "What emotion does this sentence carry? Choose joy, love, anger, fear, sadness or surprise.\nSentence: {}",
        '"{}"\n\nThe speaker is in the grip of an emotion. Is it anger, fear, joy, love, sadness or surprise?',
        "The sentence below was written in a certain emotional state. Work out which of the six it is (surprise, joy, sadness, fear, anger, "
        "love) and write down that word only.\n\n{}\n\nState:",
        "Give the emotion, one of love, sadness, joy, surprise, fear, anger: {}",
        'Sort sentences by emotion. The groups are "fear", "love", "joy", "anger", "surprise" and "sadness".\nText: {}\nGroup:',
        "Which of these words fits the sentence best: sadness, surprise, love, fear, anger, joy?\n{}\nWord:",
        'A sentence can express joy, love, anger, fear, sadness or surprise. This one does: "{}" Which one is it?',
        "{}\n\nName the emotion in the sentence above (anger, joy, surprise, love, fear or sadness).",
        "You are shown a sentence with a clear emotion in it. Assign it to one of six categories, joy, sadness, love, surprise, anger or fear, "
        "by what its writer seems to go through.\nInput sentence: {}\nCategory:",
        'How does the narrator feel here, given the choice of fear, anger, sadness, love, joy and surprise?\n"{}"',
    ),
    "task109_smsspamcollection_spamsmsdetection": (
        "Is this text message spam or ham?\n\n{}\n\nAnswer:",
        "A phone received the SMS below. Call it spam if it means nothing to the receiver or could as well have gone to many other people, and "
        "ham if it was written for the one who got it.\nSMS: {}\nVerdict:",
        "{}\n\nWould you filter this message out? Answer spam to filter it, ham to keep it.",
        "Separate junk texts (spam) from genuine ones (ham).\nMessage: {}\nLabel:",
        'Someone\'s inbox holds this: "{}" Decide whether it is an unwanted mass mailing, which we call spam, or a normal personal message, '
        "which we call ham.",
        "Label the SMS as ham or spam.\n{}",
        "Messages that matter only to their receiver are ham. Those that are irrelevant, or would suit anybody else just as well, are spam. "
        "What is the following one?\n\nText: {}\nIt is:",
        'Did a friend write this or an advertiser? For a friend say ham, for an advertiser say spam.\n"{}"',
        'You build a spam filter for mobile phones. For every incoming text it returns one of two words: "spam" where the content is of no '
        'concern to the person or was sent out to many, "ham" otherwise.\nIncoming: {}\nReturned:',
        "{}\n\nHam or spam?",
    ),
    "task1157_bard_analogical_reasoning_rooms_for_containers": (
        "Complete the analogy with a room of a house.\n{} :",
        "In the line below, the first thing belongs in the room named after it. In which room does the last thing belong?\n{} : ?",
        "An object and its room are given, then a second object without one. Write the room that goes with the second object in the same "
        "way.\n\n{} : ?\n\nRoom:",
        "{} : ?\n\nReplace the question mark by the room where you would find that object.",
        "Things have their places in a home. Following the example before the full stop, say where the thing after it is kept.\n{} :",
        "Fill in the missing room.\n{} : ?",
        'A pair "object : room" comes first, followed by a lone object. Finish the second pair so that both stand in the same relation.\n'
        "Pairs: {} : ?\nMissing word:",
        "Where in the house does the last object go? The first one shows how to answer.\n\n{} :",
        'Solve this puzzle about furniture and household items: "{} : ?" The answer is the name of the room that takes the place of the '
        "question mark.",
        'Read "A : B" as "A is usually found in B", where B is a part of the home. Now continue with the right B.\n{} : ?\nB:',
    ),
}
